"""Search: items whose title, genres, year or description have the words of the request's text.

Both ways of weighting words end in the same arrays: for each word of the catalogue, the items that
have it and what it adds to their scores.
"""

import logging
import unicodedata
from collections.abc import Iterable
from typing import Any, Self

import numpy as np
import pandas as pd
import scipy.sparse as sparse

from twotower.data.catalogue import Catalogue
from twotower.data.requests import Requests
from twotower.data.words import words_in
from twotower.funnel.filters import is_among
from twotower.funnel.sources.answers import at_most, in_batches
from twotower.funnel.stage import Source
from twotower.ragged import Ragged
from twotower.retrieval.candidates import NO_KEY, Candidates

FIELDS = ("title", "genres", "year", "description")
# Characters of a word that count.
LONGEST = 40


class Search(Source):
    """The items whose words fit the request's `search_text` best.

        score(item) = sum over the different words of the text of weight(word, item)

    A text without a word of the catalogue (empty, stop words alone, another script) gets an empty
    row. Stop words are English. Upper case and accents do not matter.

        Search.bm25(dataset.catalogue)(requests, k=500)

    Args:
        words: `[num_words]` text, ascending.
        data: `[num_postings]` float32, weights, word after word.
        indices: `[num_postings]`, keys of the items that have the word.
        indptr: `[num_words + 1]`, where the postings of each word begin.
        query_weight: `[num_words]` float32, what a word of the text weighs; 1 in BM25, whose
            postings hold it.
        num_items: Number of items.
        cosine: Whether scores are divided by the length of the text's vector, the weights of its
            words.
    """

    kind = "search"
    context = ("search_text",)
    SETTINGS = ("num_items", "cosine")
    ARRAYS = (
        "words text [num_words]",
        "data float [num_postings]",
        "indices int [num_postings]",
        "indptr int [num_words + 1]",
        "query_weight float [num_words]",
    )

    def __init__(
        self,
        words: np.ndarray,
        data: np.ndarray,
        indices: np.ndarray,
        indptr: np.ndarray,
        query_weight: np.ndarray,
        num_items: int,
        cosine: bool,
    ) -> None:
        self.words, self.data, self.indices, self.indptr = words, data, indices, indptr
        self.query_weight, self.num_items, self.cosine = query_weight, num_items, cosine
        self._word = {word: place for place, word in enumerate(words.tolist())}
        self._postings = sparse.csr_array(
            (data, indices.astype(np.int32), indptr.astype(np.int32)), (len(words), num_items)
        )
        # A product would read beyond its memory where a key is too large.
        self._postings.check_format()

    @classmethod
    def bm25(
        cls,
        catalogue: Catalogue,
        keys: np.ndarray | None = None,
        fields: Iterable[str] = FIELDS,
        k1: float = 1.5,
        b: float = 0.75,
    ) -> Self:
        """BM25 (Robertson and Zaragoza 2009), in the variant of Lucene; weights from `bm25s`.

        Args:
            catalogue: The items.
            keys: `[num_keys]` keys that may be answered, such as `bundle.keys`; all by default.
            fields: Columns to search; those that the catalogue does not have are ignored.
            k1: How slowly repeats of a word in an item are discounted.
            b: How much long texts are discounted, from 0 to 1.

        Raises:
            ValueError: None of the fields is in the catalogue, no item has a word, unknown keys, or
                `k1` or `b` out of bounds.
            ImportError: `bm25s` is not installed.
        """
        if not (0 <= k1 < np.inf and 0 <= b <= 1):
            raise ValueError(f"k1 must be 0 or more and b within 0 and 1; got {k1}, {b}.")
        bm25s = _extra("bm25s")
        logging.getLogger("bm25s").setLevel(logging.WARNING)  # its import sets DEBUG
        documents, keys = _documents(catalogue, keys, fields)
        words = sorted(set().union(*documents))
        place = {word: number for number, word in enumerate(words)}
        index = bm25s.BM25(k1=k1, b=b, method="lucene")
        tokens = [[place[word] for word in document] for document in documents]
        index.index((tokens, place), show_progress=False, create_empty_token=False)
        weights = sparse.csc_array(
            (index.scores["data"], index.scores["indices"], index.scores["indptr"]),
            (len(documents), len(words)),
        )
        return cls._of(weights, words, keys, np.ones(len(words)), len(catalogue), False)

    @classmethod
    def tfidf(
        cls,
        catalogue: Catalogue,
        keys: np.ndarray | None = None,
        fields: Iterable[str] = FIELDS,
    ) -> Self:
        """TF-IDF: the cosine of the text's and the item's vectors; weights from `scikit-learn`.

        Args:
            catalogue: The items.
            keys: `[num_keys]` keys that may be answered, such as `bundle.keys`; all by default.
            fields: Columns to search, as far as the catalogue has them.

        Raises:
            ValueError: None of the fields is in the catalogue, no item has a word, or unknown keys.
            ImportError: `scikit-learn` is not installed.
        """
        text = _extra("sklearn.feature_extraction.text")
        documents, keys = _documents(catalogue, keys, fields)
        vectorizer = text.TfidfVectorizer(analyzer=lambda document: document)
        weights = vectorizer.fit_transform(documents)
        words = vectorizer.get_feature_names_out().tolist()
        return cls._of(weights, words, keys, vectorizer.idf_, len(catalogue), True)

    @classmethod
    def _of(
        cls,
        weights: Any,
        words: list[str],
        keys: np.ndarray,
        query_weight: np.ndarray,
        num_items: int,
        cosine: bool,
    ) -> Self:
        """From weights `[num_documents, num_words]`, sparse."""
        postings = sparse.csr_array(weights.T).astype(np.float32)
        return cls(
            np.array(words, str),
            postings.data,
            keys[postings.indices],
            postings.indptr,
            query_weight.astype(np.float32),
            num_items,
            cosine,
        )

    def __call__(self, requests: Requests, k: int) -> Candidates:
        k = at_most(k, self.num_items)
        texts = requests.texts("search_text")
        if not any(texts):
            return Candidates.empty(len(requests), k)

        def answer(part: Requests) -> Candidates:
            queries = self._queries(part.texts("search_text"))
            found = queries @ self._postings
            offsets = found.indptr.astype(np.int64)
            keys = Ragged(found.indices.astype(np.int64), offsets).to_dense(NO_KEY)
            scores = Ragged(found.data, offsets).to_dense(np.float32(0))
            keys[is_among(keys, part.exclude)] = NO_KEY
            return Candidates.rank(keys, scores, k)

        return in_batches(answer, requests, 4 * self.num_items, k)

    def _queries(self, texts: np.ndarray) -> sparse.csr_array:
        """Weights of the words of texts, `[num_requests, num_words]`."""
        words = (sorted(set(words_of(text)) & self._word.keys()) for text in texts)
        rows = Ragged.from_rows([[self._word[word] for word in found] for found in words])
        queries = sparse.csr_array(
            (
                self.query_weight[rows.values],
                rows.values.astype(np.int32),
                rows.offsets.astype(np.int32),
            ),
            (len(rows), len(self.words)),
        )
        if self.cosine:
            lengths = np.sqrt((queries * queries).sum(axis=1))
            queries.data /= np.repeat(lengths, rows.lengths)
        return queries


def words_of(text: str) -> list[str]:
    """The words of a text, as the towers split it, but without accents.

    Words are cut at 40 characters: all are kept as wide as the longest, and where a language has no
    spaces, a sentence is one word.

    >>> words_of("Les Misérables (1998), it’s 'Sci-Fi'")
    ['les', 'miserables', '1998', 'its', 'sci', 'fi']
    """
    parts = (unicodedata.normalize("NFKD", word) for word in words_in(str(text).casefold()))
    plain = ("".join(c for c in word if not unicodedata.combining(c)) for word in parts)
    return [word[:LONGEST] for word in plain if word]


def _documents(
    catalogue: Catalogue, keys: np.ndarray | None, fields: Iterable[str]
) -> tuple[list[list[str]], np.ndarray]:
    """Words of each item without stop words, and the items' keys."""
    stop_words = set(_extra("bm25s.stopwords").STOPWORDS_EN)
    columns = [field for field in fields if field in catalogue.items]
    if not columns:
        raise ValueError(
            f"search needs one of the columns {list(fields)}; the catalogue has "
            f"{list(catalogue.items.columns)}."
        )
    keys = catalogue.keys if keys is None else np.sort(keys)
    if keys.min(initial=0) < 0 or keys.max(initial=-1) >= len(catalogue):
        raise ValueError(
            f"keys must lie within 0 and {len(catalogue) - 1}; got {keys[0]} to {keys[-1]}."
        )
    table = catalogue.items.iloc[keys]
    texts = [" ".join(map(_text, row)) for row in zip(*(table[column] for column in columns))]
    documents = [[word for word in words_of(text) if word not in stop_words] for text in texts]
    if not any(documents):
        raise ValueError(f"no item has a word in {columns}, so there is nothing to search.")
    return documents, keys


def _text(value: Any) -> str:
    """A cell of the catalogue as text: tags one after the other, years without a fraction."""
    if isinstance(value, str):
        return value
    if isinstance(value, tuple):
        return " ".join(value)
    if pd.isna(value):
        return ""
    return str(int(value)) if float(value).is_integer() else str(value)


def _extra(module: str) -> Any:
    """A module of `bm25s` or `scikit-learn`, which are extras; imported where it is needed."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            'fitting a search needs bm25s and scikit-learn: pip install "twotower[funnel]"'
        ) from error
