"""Registry: a folder of bundles, of which one is active. (Under construction.)"""


class Registry:
    """Bundles by version."""
