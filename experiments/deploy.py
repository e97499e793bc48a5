"""Puts a bundle into a registry and makes it live, without a request that fails.

    python experiments/deploy.py --registry=W/registry --bundle=W/bundle
    python experiments/deploy.py --registry=W/registry --bundle=W/bundle --share=0.05
    python experiments/deploy.py --registry=W/registry --roll_back

With --url the service at that address checks the bundle, and only if it is good it becomes active;
this waits for the answer. Without, the registry names the bundle as active, and every service that
follows the registry checks it for itself and takes it or leaves it. --share makes it the canary of
that share of the users. TWOTOWER_ADMIN_TOKEN is sent if it is in the environment.

Where indexes are in a process of their own, --index_url makes it load the bundle first; that of the
old one goes on to answer beside it. TWOTOWER_INDEX_TOKEN is sent to it.
"""

import json
import os
import urllib.error
import urllib.request

from absl import flags

from twotower.commands import script

ADMIN_TOKEN, INDEX_TOKEN = "TWOTOWER_ADMIN_TOKEN", "TWOTOWER_INDEX_TOKEN"

FLAGS = flags.FLAGS
script.DEFINE_path("registry", None, "Folder of the registry.", required=True)
script.DEFINE_path("bundle", None, "Folder of the bundle.")
flags.DEFINE_bool("roll_back", False, "End the canary, or go back to the previous version.")
flags.DEFINE_float("share", 1.0, "Share of the users; below 1 the bundle is a canary.")
flags.DEFINE_string(
    "url", "", "Address of a service of the registry, such as http://127.0.0.1:8000."
)
flags.DEFINE_string("index_url", "", "Address of its index process, if there is one.")
flags.DEFINE_integer("keep", 3, "Versions that stay in the registry, besides those in use.", 1)


def main() -> None:
    """Prints the version that was put and made active."""
    from twotower.serving.registry import Registry

    if bool(FLAGS.bundle) == FLAGS.roll_back:
        raise ValueError("give either --bundle or --roll_back.")
    registry = Registry(FLAGS.registry)
    if FLAGS.roll_back:
        if FLAGS.url:
            call(FLAGS.url, ADMIN_TOKEN, "/deploys/rollback", {})
        else:
            registry.roll_back()
    else:
        version = registry.put(FLAGS.bundle)
        print(f"put {version}")
        if FLAGS.index_url:
            call(FLAGS.index_url, INDEX_TOKEN, "/deploys", {"version": version})
        if FLAGS.url:
            body = {"version": version, "share": FLAGS.share}
            call(FLAGS.url, ADMIN_TOKEN, "/deploys", body)
        else:
            registry.activate(version, FLAGS.share)
    active = registry.active
    print(f"active {active.version}" + (f", canary {active.canary}" if active.canary else ""))
    if removed := registry.prune(FLAGS.keep):
        print(f"removed {', '.join(removed)}")


def call(url: str, token_name: str, path: str, body: dict) -> None:
    """Posts to a service.

    Args:
        url: Its address.
        token_name: Environment variable with its bearer token.
        path: Of the route.
        body: What to post.

    Raises:
        ValueError: It refused; the message has its reasons.
    """
    token = os.environ.get(token_name, "")
    headers = {"content-type": "application/json"}
    headers |= {"authorization": f"Bearer {token}"} if token else {}
    address, content = url.rstrip("/") + path, json.dumps(body).encode()
    request = urllib.request.Request(address, content, headers)
    try:
        urllib.request.urlopen(request, timeout=600).read()
    except urllib.error.HTTPError as error:
        raise ValueError(f"{url} answers {error.code}: {error.read().decode()}") from error


if __name__ == "__main__":
    script.run(main)
