"""A ``gcloud`` that plays queued resources by a script; tests put it on PATH.

``$FAKE_CLOUD`` is a folder: ``world.json`` holds the plan and what became of it, ``calls`` one line
a call. Of each life of the machines the plan says what is seen, in turn: ``running``, ``exit N``,
``unreachable``, or the end of the life, ``SUSPENDED`` or ``FAILED``. ``errors`` names the calls
that fail for no reason: ``{"describe": [1, 2]}`` fails the first two.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(os.environ.get("FAKE_CLOUD", ""))
COMING = ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]


def verb(words: list[str]) -> str:
    name = words[3]
    said = next((w.partition("=")[2] for w in words if w.startswith("--command=")), "")
    if name != "ssh":
        return name
    if "else echo idle" in said:
        return "look"
    kinds = {"entrypoint.sh": "run", "uv pip": "setup", "tail": "logs"}
    return next((kind for mark, kind in kinds.items() if mark in said), "ssh")


def answer(world: dict, kind: str) -> tuple[int, str]:
    """Exit code and what is said."""
    fate = world["lives"][world["life"]] if world["life"] >= 0 else []
    if kind == "describe":
        if world["state"] == "ABSENT":
            return 1, "ERROR: (gcloud) NOT_FOUND: Resource not found"
        if world["coming"]:
            world["state"] = world["coming"].pop(0)
        elif fate and fate[0] in ("SUSPENDED", "FAILED"):
            world["state"] = fate.pop(0)
        return 0, world["state"]
    if kind == "create":
        if world["state"] != "ABSENT":
            return 1, "ERROR: (gcloud) ALREADY_EXISTS"
        world.update(state="COMING", coming=list(COMING), started=False, life=world["life"] + 1)
    elif kind == "delete":
        world["state"] = "ABSENT"
    elif kind == "run":
        world["started"] = True
    elif kind == "look":
        seen = fate.pop(0) if world["started"] and fate else "idle"
        return (255, "ssh: connection refused") if seen == "unreachable" else (0, seen)
    return 0, ""


def main(words: list[str]) -> int:
    with (FOLDER / "calls").open("a") as calls:
        calls.write(" ".join(words).replace("\n", "; ") + "\n")
    if (FOLDER / "home").exists() and words[3] == "ssh":  # the only host is this machine
        command = next(w.partition("=")[2] for w in words if w.startswith("--command="))
        home = {**os.environ, "HOME": str(FOLDER / "home")}
        return subprocess.run(["bash", "-c", command], cwd=FOLDER / "home", env=home).returncode
    world, kind = json.loads((FOLDER / "world.json").read_text()), verb(words)
    count = world["counts"][kind] = world["counts"].get(kind, 0) + 1
    if count in world["errors"].get(kind, []):
        code, said = 1, "ERROR: (gcloud) UNAVAILABLE: try again"
    else:
        code, said = answer(world, kind)
    (FOLDER / "world.json").write_text(json.dumps(world))
    print(said, file=sys.stderr if code else sys.stdout)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
