"""The public names, and the README's own code."""

import contextlib
import io
import json
import re

import pytest
import tiny

import twotower as tt

# A name that goes or comes is a decision: README and CHANGELOG say so.
NAMES = """
    Bundle Candidates Catalogue Comparison Dataset Ease EvalCases ExamplesConfig FitConfig IAls
    IndexConfig ItemConfig ItemKnn MiningConfig NegativesConfig Popularity QueryConfig Recipe
    Recommendations Requests Split TaskConfig Trainer Training TwoTowerModel add_index evaluate
    item_tower load_dataset make_split query_tower read_tables recipe_for summarise
"""

# What stands in README.md -> the same on the small made-up service, in a folder of the test's own.
MADE_UP = {
    '"movielens/1m", "ml-1m"': '"synthetic/small"',
    '"260", "1196", "1210"': '"i00003", "i00007"',
    '"W': '"{folder}/W',
    "epochs=4": "hidden=16, dim=8, batch_size=512, warmup_steps=5, epochs=4",
}


def test_the_names_are_those_that_were_decided_on():
    assert tt.__all__ == NAMES.split()
    assert [name for name in dir(tt) if not name.startswith("_")] == tt.__all__
    for name in tt.__all__:
        assert callable(getattr(tt, name)), name
    with pytest.raises(AttributeError, match="no attribute 'Traner'"):
        tt.Traner  # noqa: B018


def test_the_import_loads_nothing_and_data_loads_no_tensorflow():
    code = (
        "import json, sys; import twotower as tt\n"
        "heavy = {'numpy', 'pandas', 'tensorflow', 'faiss'}\n"
        "first = sorted(heavy & {*sys.modules})\n"
        "tt.make_split(tt.load_dataset('synthetic/small'), 'random'), tt.evaluate, tt.Popularity\n"
        "print(json.dumps([first, 'tensorflow' in sys.modules, tt.__version__]))"
    )
    assert json.loads(tiny.python("-c", code).stdout) == [[], False, tt.__version__]


def blocks() -> list[str]:
    """Python of README.md that uses the package."""
    text = (tiny.ROOT / "README.md").read_text()
    found = re.findall(r"```python\n(.*?)```", text, re.S)
    return [block for block in found if "tt." in block]


def run(code: str, folder, **names) -> dict:
    """Names that README's code leaves behind, run on made-up data."""
    for written, instead in MADE_UP.items():
        code = code.replace(written, instead.format(folder=folder))
    exec(code, names)
    return names


@pytest.fixture(scope="module")
def three_verbs(tmp_path_factory):
    """Names that README's first block leaves, and what it prints."""
    folder, printed = tmp_path_factory.mktemp("readme"), io.StringIO()
    assert all(written in blocks()[0] for written in MADE_UP)
    with contextlib.redirect_stdout(printed):
        names = run(blocks()[0], folder)
    return names, printed.getvalue().splitlines()


def test_three_verbs_of_the_readme(three_verbs):
    names, lines = three_verbs
    assert lines[0].startswith("random, validation: ") and lines[1].endswith("popularity")
    (recall,) = [line.split() for line in lines if line.startswith("recall_micro@100")]
    found = names["trainer"].report.metrics["recall_micro@100"]["mean"]
    assert float(recall[1]) == pytest.approx(found, abs=1e-4)
    # Selected on validation, trained on its rows as well, and exported with what was asked.
    bundle, trainer = names["bundle"], names["trainer"]
    assert bundle.manifest["refit"] and len(trainer.selection.log) == 4
    assert bundle.indexes == ["hnsw"] and not (bundle.directory / "retrieve_scann").exists()
    assert not tt.Bundle(bundle.directory.parent / "bundle_validation").manifest["refit"]
    # The letters of a text could be backends themselves; a single name is a list of one.
    with pytest.raises(ValueError, match="'hsnw'"):
        trainer.export(bundle.directory, indexes="hsnw")
    titles = eval(lines[-1])
    assert len(titles) == 10 and set(titles) <= set(tiny.dataset().items["title"])


def test_three_verbs_on_a_table_of_ratings_alone(tmp_path):
    """As the comment of README's block says; the table has no genres and no years."""
    rows = tiny.dataset().interactions[["user_id", "item_id", "timestamp"]]
    rows.to_csv(tmp_path / "ratings.csv", index=False)
    first, *others = blocks()[0].split("\ndata = ", 1)[1].splitlines()
    assert first.endswith('# or tt.read_tables("ratings.csv")')
    code = [f"data = tt.read_tables({str(tmp_path / 'ratings.csv')!r})", *others]
    names = run("\n".join(["import twotower as tt", *code]), tmp_path)
    assert names["trainer"].recipe.item.features == ("item_id",)
    assert len(names["bundle"].recommend(["i00003"], k=10).ids) == 10


def test_arguments_in_another_order_are_named():
    data, split = tiny.dataset(), tiny.split()
    with pytest.raises(TypeError, match=r"make_split takes .*; got a NoneType and a str"):
        tt.make_split(None, "random")
    with pytest.raises(TypeError, match=r"make_split takes .*; got a str and a Dataset"):
        tt.make_split("random", data)
    with pytest.raises(TypeError, match=r"Trainer takes .*; got a Split and a Dataset"):
        tt.Trainer(split, data)


def test_recommendations_keep_to_what_is_asked(three_verbs):
    bundle, items = three_verbs[0]["bundle"], tiny.dataset().items.set_index("item_id")
    history = ["i00003", "i00007"]
    best = bundle.recommend(history, k=300)
    assert not {*history} & {*best.ids} and best.scores == sorted(best.scores, reverse=True)
    # The nearest of two vectors, by hand.
    row = {item: bundle.vectors[bundle.keys == bundle.catalogue.keys_of([item])[0]][0]
           for item in (*history, best.ids[0])}  # fmt: skip
    near = max(history, key=lambda item: row[item] @ row[best.ids[0]])
    assert best.table["because"][0] == near and best.rows()[0]["because"] == near
    # Filters and further exclusions leave the order of the others as it is.
    years = items["year"][best.ids]
    middle = sorted(years)[len(years) // 2]
    expected = [item for item in best.ids if years[item] >= middle and item != best.ids[0]]
    options = {"where": {"year": (middle, None)}, "exclude": best.ids[:1]}
    for index in ("exact", "hnsw", bundle.retriever("hnsw")):
        found = bundle.recommend(history, k=5, index=index, **options)
        assert found.ids == expected[:5] and len(str(found).splitlines()) == 5
    with pytest.raises(ValueError, match=r"items \['nothing'\] are not in the catalogue"):
        bundle.recommend(["i00003", "nothing"])
    # The letters of a text could be ids themselves.
    with pytest.raises(ValueError, match=r"such as \['i00003'\]; got the text 'i00003'"):
        bundle.recommend("i00003")
    for wrong in ({"i00003", "i00007"}, {"i00003": 1}):
        with pytest.raises(ValueError, match=r"history is a list of ids, oldest first; got \{"):
            bundle.recommend(wrong)
    with pytest.raises(ValueError, match=r"where must be a mapping.*got 'year=1999'"):
        bundle.recommend(history, where="year=1999")
    with pytest.raises(ValueError, match="index must be a name or a retriever; got None"):
        bundle.recommend(history, index=None)
    for wrong in (None, [["i00003"]], iter(history)):
        with pytest.raises(ValueError, match=r"items are a list of ids; got .*Give \[\] for none"):
            bundle.recommend(wrong)
    # What is given twice would be read from one of the two in silence.
    for wrong in ({"history": ["i00009"]}, {"time": 5}, {"user_id": "u1"}):
        with pytest.raises(ValueError, match=r"inputs have .* give those as the arguments user_id"):
            bundle.recommend(history, inputs=wrong)
    with pytest.raises(ValueError, match=r"year: the range \(1990, 1980\) ends before it begins"):
        bundle.recommend(history, where={"year": (1990, 1980)})
    for name, config, problem in (
        ("exact", tt.IndexConfig("flat"), "'exact' is search over the bundle's vectors"),
        ("small", tt.IndexConfig("foo"), r"got 'foo'\.$"),
    ):
        with pytest.raises(ValueError, match=problem):
            tt.add_index(bundle, name, config)
    assert bundle.indexes == ["hnsw"]
    with pytest.raises(ValueError, match="times: expected one for each of 2 items; got 3"):
        bundle.recommend(history, times=[1, 2, 3])
    with pytest.raises(ValueError, match=r"takes \['history'\]; unknown \['gender'\]"):
        bundle.recommend(history, inputs={"gender": "F"})
    with pytest.raises(ValueError, match="of user '42' nothing is given"):
        bundle.recommend(user_id="42")


def test_a_recipe_takes_choices_by_name():
    recipe = tt.Recipe(seed=3, hidden=[64], query_features="history", fit=tt.FitConfig(patience=2))
    assert (recipe.fit.seed, recipe.fit.patience, recipe.examples.seed) == (3, 2, 3)
    assert recipe.query.hidden == recipe.item.hidden == (64,)
    assert recipe.query.features == ("history",)
    pools = tt.NegativesConfig(negatives=("catalogue",))
    assert tt.Recipe(negatives=pools, correction="none").negatives == pools
    assert tt.Recipe(negatives="catalogue", correction="none").negatives == pools
    assert recipe == tt.Recipe.from_json(recipe.to_json()) != tt.Recipe()
    for wrong, near in (
        ("epoch", "'epochs'"), ("features", "'query_features', 'item_features'"),
        ("temp", "'temperature'"), ("lr", "'learning_rate'"),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=f"no choice '{wrong}'; near are {near}"):
            tt.Recipe(**{wrong: 1})
    with pytest.raises(TypeError, match=r"fit must be a FitConfig; got \{'epochs': 3\}"):
        tt.Recipe(fit={"epochs": 3})
    with pytest.raises(ValueError, match="epochs must be 1 or more"):
        tt.Recipe(epochs=0)


def test_the_keras_way_of_the_readme(three_verbs, tmp_path):
    before = {name: three_verbs[0][name] for name in ("tt", "data", "split")}
    model = run(blocks()[1], tmp_path, **before)["training"].model
    assert isinstance(model, tt.TwoTowerModel) and model.history.history["loss"][0] > 0
