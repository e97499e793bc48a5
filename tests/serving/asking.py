"""Requests to a service, whose answers must have the expected status."""

import json


def recommend(client, **body):
    answer = client.post("/recommend", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def ids(answer) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def refused(client, path, body, status=422) -> dict:
    """The error that a wrong body gets."""
    content = body if isinstance(body, bytes) else json.dumps(body)
    answer = client.post(path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    return answer.json()["error"]
