"""``jepa-vl completion``: a script that completes commands, options, keys and values in a shell.

The script holds all it needs, so that no Python is started while somebody types.
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jepa_vl.cli.configs import Override
from jepa_vl.config import CHOICES, Config, ConfigError, flat, one_of
from jepa_vl.kinds import KINDS, POOLS
from jepa_vl.methods import METHODS
from jepa_vl.schema import CROSSERS, VARIANTS

SHELLS = ("bash", "zsh", "fish")
TASKS = (
    "knn", "fast", "fewshot", "lidar", "ijepa_vissl", "mae_lars", "dinov2_sgd", "attentive",
    "attentive_one", "finetune", "finetune_low", "segmentation", "retrieval", "grounding",
    "sentiment", "captioning", "vqa", "reference",
)  # fmt: skip
# What an option's value can be; a command's own comes first. A test holds them to the registries.
VALUES: dict[tuple[str, str], Sequence[str]] = {
    ("preview", "--what"): ("config", "params", "shardings", "flops", "masks", "batch"),
    ("eval", "--task"): TASKS,
    ("eval", "--branch"): ("target", "context"),
    ("eval", "--floor"): ("cheap", "all", "none"),
    ("export", "--format"): ("hf", "timm", "stablehlo", "onnx", "safetensors"),
    ("export", "--branch"): ("target", "context"),
    ("export", "--part"): ("encoder", "text", "predictor", "conditioner", "whole"),
    ("checkpoint convert", "--branch"): ("params", "target", "all"),
    ("checkpoint convert", "--dtype"): ("float32", "bfloat16"),
    ("scaling fit", "--method"): ("vp", "huber"),
    ("completion", ""): SHELLS,
}
BASH = """\
# Completion of jepa-vl for bash: eval "$(jepa-vl completion bash)"
_jepa_vl_keys="{keys}"
_jepa_vl() {{
    local cur="${{COMP_WORDS[COMP_CWORD]}}" key="${{COMP_WORDS[COMP_CWORD-1]}}" lead="" list=""
    local one="${{COMP_WORDS[1]}}" two="${{COMP_WORDS[2]}}" verb options="" keys="" values=""
    COMPREPLY=()
    if [[ $cur == "=" ]]; then
        cur=""
    elif [[ $key == "=" ]]; then
        key="${{COMP_WORDS[COMP_CWORD-2]}}"
    elif [[ $cur == --*=* ]]; then
        key="${{cur%%=*}}" lead="${{cur%%=*}}=" cur="${{cur#*=}}"
    fi
    if (( COMP_CWORD == 1 )); then
        COMPREPLY=( $(compgen -W "{firsts} --help --version" -- "$cur") )
        return
    fi
    case "$one" in
{seconds}
    esac
    verb="$one"
    if [[ -n $list ]]; then
        if (( COMP_CWORD == 2 )) && [[ $cur != -* ]]; then
            COMPREPLY=( $(compgen -W "$list" -- "$cur") )
            return
        fi
        [[ " $list " == *" $two "* ]] && verb="$one $two"
    fi
    case "$verb" in
{options}
    esac
    case "$verb $key" in
{values}
    esac
    case "$key" in
{settings}
    esac
    if [[ -n $values ]]; then
        [[ $cur == *,* ]] && lead="$lead${{cur%,*}}," cur="${{cur##*,}}"
        COMPREPLY=( $(compgen -P "$lead" -W "$values" -- "$cur") )
    elif [[ $cur == --config.* && -n $keys ]]; then
        list=""
        for one in $keys; do
            list="$list $(compgen -W "$_jepa_vl_keys" -- "$one")"
        done
        COMPREPLY=( $(compgen -S "=" -W "$list" -- "$cur") )
        compopt -o nospace 2>/dev/null
    elif [[ $cur == -* ]]; then
        COMPREPLY=( $(compgen -W "$options --help" -- "$cur") )
    fi
}}
complete -o default -F _jepa_vl jepa-vl
"""
ZSH = """\
#compdef jepa-vl
# Completion of jepa-vl for zsh: eval "$(jepa-vl completion zsh)", after compinit
autoload -U +X bashcompinit && bashcompinit
"""


def run(args: argparse.Namespace, overrides: Sequence[Override]) -> int:
    """Prints the script.

    Raises:
      ConfigError: not one shell, or one that is not known.
    """
    del overrides
    from jepa_vl.cli.main import VERBS

    if len(args.words) != 1:
        raise ConfigError("SHELL", " ".join(args.words), f"one of {', '.join(SHELLS)}")
    one_of("SHELL", args.words[0], SHELLS)
    script = fish(VERBS) if args.words[0] == "fish" else bash(VERBS)
    print((ZSH if args.words[0] == "zsh" else "") + script, end="")
    return 0


def settings() -> dict[str, Sequence[str]]:
    """Every key of the configuration, with the values that it can have; (): any."""
    known: dict[str, Sequence[str]] = {
        **CHOICES,
        "objective": tuple(METHODS),
        "data.kind": tuple(KINDS),
        "data.caption_pool": POOLS,
        "encoder.variant": tuple(VARIANTS),
        "tijepa.variant": tuple(CROSSERS),
        "eval.tasks": TASKS,
    }
    leaves = flat(dataclasses.asdict(Config()))
    switch = ("true", "false")
    return {
        key: known.get(key, switch if isinstance(value, bool) else ())
        for key, value in leaves.items()
    }


def _groups(verbs: Mapping[str, Any]) -> dict[str, list[str]]:
    """First words of all verbs, with the second ones."""
    out: dict[str, list[str]] = {}
    for verb in verbs:
        first, _, second = verb.partition(" ")
        out.setdefault(first, []).extend([second] if second else [])
    return out


def _options(verb: Any) -> list[str]:
    return [f"--{name.replace('_', '-')}" for name in verb.options]


def _values(verb: str, option: str) -> Sequence[str]:
    return VALUES.get((verb, option), ())


def bash(verbs: Mapping[str, Any]) -> str:
    """The script of bash."""

    def case(pattern: str, text: str) -> str:
        return f"        {pattern}) {text} ;;"

    groups, keys = _groups(verbs), settings()
    options = []
    for name, verb in verbs.items():
        text = f'options="{" ".join(_options(verb))}"'
        if verb.overrides:  # beginnings of the keys that may be given
            text += f' keys="{" ".join(f"--config.{start}" for start in verb.overrides)}"'
        options.append(case(f'"{name}"', text))
    values = [
        case(f'"{verb} {option}"' if option else f'"{verb} "*', f'values="{" ".join(found)}"')
        for (verb, option), found in VALUES.items()
    ]
    set_to = [case(f"--config.{key}", f'values="{" ".join(v)}"') for key, v in keys.items() if v]
    return BASH.format(
        keys=" ".join(f"--config.{key}" for key in keys),
        firsts=" ".join(groups),
        seconds="\n".join(case(one, f'list="{" ".join(two)}"') for one, two in groups.items()),
        options="\n".join(options),
        values="\n".join(values),
        settings="\n".join(set_to),
    )


def fish(verbs: Mapping[str, Any]) -> str:
    """The script of fish."""
    lines = ["# Completion of jepa-vl for fish: jepa-vl completion fish | source"]
    start = "complete -c jepa-vl"
    groups = _groups(verbs)
    for first, seconds in groups.items():
        about = verbs[first].summary if first in verbs else ", ".join(seconds)
        lines.append(f"{start} -f -n __fish_use_subcommand -a {first} -d {_quote(about)}")
        for second in seconds:
            here = f"__fish_seen_subcommand_from {first}; and not __fish_seen_subcommand_from "
            lines.append(
                f"{start} -f -n {_quote(here + ' '.join(seconds))} -a {second} "
                f"-d {_quote(verbs[f'{first} {second}'].summary)}"
            )
    for name, verb in verbs.items():
        here = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in name.split())
        for option in _options(verb):
            values = _values(name, option)
            list_ = f" -x -a {_quote(' '.join(values))}" if values else ""
            lines.append(f"{start} -n {_quote(here)} -l {option[2:]}{list_}")
        if not verb.options and _values(name, ""):
            lines.append(f"{start} -f -n {_quote(here)} -a {_quote(' '.join(_values(name, '')))}")
        for key, values in settings().items() if verb.overrides else ():
            if key.startswith(verb.overrides):
                list_ = f" -a {_quote(' '.join(values))}" if values else ""
                lines.append(f"{start} -n {_quote(here)} -l config.{key} -x{list_}")
    return "\n".join(lines) + "\n"


def _quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
