"""One line for a missing optional library: the name of the extra to install."""

import importlib.metadata
import re
from collections import defaultdict

# Modules that have not the name of the library they come with.
LIBRARIES = {"PIL": "pillow", "sklearn": "scikit-learn"}


def advice(error: ImportError) -> str:
    """What to install, if the module belongs to an extra of the package; else the text of the
    error.

    If several extras have the library, it names the smallest one.

    >>> advice(ModuleNotFoundError("No module named 'orjson'", name="orjson"))
    'needs orjson; pip install "twotower[serving]"'
    >>> advice(ModuleNotFoundError("No module named 'ojson'", name="ojson"))
    "No module named 'ojson'"
    """
    module = (error.name or "").partition(".")[0]
    library = LIBRARIES.get(module, module.replace("_", "-"))
    having = {extra: names for extra, names in _extras().items() if library in names}
    if not isinstance(error, ModuleNotFoundError) or not having:
        return str(error)
    extra = min(having, key=lambda extra: len(having[extra]))
    return f'needs {library}; pip install "twotower[{extra}]"'


def _extras() -> dict[str, list[str]]:
    """Extra -> the libraries it installs, from the metadata of the installed package; {} if it is
    not installed."""
    extras = defaultdict(list)
    try:
        required = importlib.metadata.requires("twotower") or []
    except importlib.metadata.PackageNotFoundError:
        required = []
    for line in required:
        if found := re.match(r"([\w.-]+).*\bextra == ['\"](\w+)['\"]", line):
            extras[found[2]].append(found[1].lower())
    return extras
