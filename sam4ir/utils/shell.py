"""Commands that a message shows, as a shell reads them back."""

from __future__ import annotations

import shlex
from collections.abc import Mapping


def command_words(*words: object) -> str:
    """Return words (paths, names, flags) as a shell's line: whatever a shell would take otherwise stands in quotes."""
    return shlex.join(map(str, words))


def force_yml(key: str, value: object) -> str:
    """Return the flag that sets a key (`a:b`) of the option file for one call, the value as YAML; None is null."""
    return command_words("--force_yml", f"{key}={_yaml(value)}")


def yaml_line(block: Mapping[str, object]) -> str:
    """Return a block as one line of YAML, with quotes where a value needs them."""
    return _yaml(dict(block))


def yaml_value(value: object) -> str:
    """Return a number, text or list as a value of a line of YAML, with quotes where it needs them."""
    return _yaml(value)


def _yaml(value: object) -> str:
    import yaml  # here, so that a command without YAML starts without it

    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**9, sort_keys=False)
    return text.strip().removesuffix("...").strip()
