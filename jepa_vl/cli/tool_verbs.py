"""The commands around runs: what is there, what it came to, is this machine fit for more."""

from jepa_vl.cli.verb import Verb

JSON = "file to write the same numbers to"
VERBS = {
    "report": Verb(
        "draw what a run, or a model by itself, has learnt; or set runs side by side",
        "Writes one self-contained HTML page; the run may still be going on. Of two runs or more:\n"
        "their numbers, the keys that differ, and their curves in the same panels. A model by\n"
        "itself is drawn on the built-in scenes: masks, words on patches, neighbours. With\n"
        "--proof it prints instead whether the steps that restarts have repeated saw and made the\n"
        "same, as runs of `jepa-vl train --proof` wrote it down; exit code 1 where they did not.",
        "jepa-vl report runs/quickstart\n  jepa-vl report runs/a runs/b --out both.html",
        words="RUN",
        workdir="folder of the run, as RUN; or give --model",
        model="a whole model: zoo:NAME, or a folder of jepa-vl export --part whole",
        proof="print the table of equal hashes, of a run and over its restarts",
        reference="with --proof: workdir of another run of this configuration",
        out="file to write (default: report.html in the workdir; of a model report_NAME.html and "
        "of several runs report_runs.html, both here)",
    ),
    "runs ls": Verb(
        "list the runs below a folder",
        "A row a run: objective and data, steps, status, kNN of the target encoder beside the\n"
        "untrained network and raw pixels, RankMe, goodput, when it last wrote, and its newest\n"
        "alarm. Reads text files alone; the runs may be going on.",
        "jepa-vl runs ls --root runs",
        root="folder to look below (default: runs)",
        json=JSON,
    ),
    "runs show": Verb(
        "what is known of a run",
        "Status, quality, time, provenance, what its configuration changes of the defaults, and\n"
        "the newest events.",
        "jepa-vl runs show runs/quickstart",
        words="RUN",
        json=JSON,
    ),
    "runs compare": Verb(
        "two runs or more, side by side",
        "The keys of the configuration that differ, then the final numbers. A key that has come\n"
        "since a run began counts as its default.",
        "jepa-vl runs compare runs/a runs/b",
        words="RUN",
        json=JSON,
    ),
    "doctor": Verb(
        "is this installation fit to train?",
        "Checks Python and the libraries against their pins, the extras, images, the cache and\n"
        "free disk, shared memory, open files and the devices that jax finds, and says what to\n"
        "do. Exit code 1 where a check failed; a warning is none.",
        "jepa-vl doctor",
        tpu="also compile for a TPU that is not here ([tpu] extra)",
        json="file to write the findings to",
    ),
    "completion": Verb(
        "print the completion script of a shell",
        "Commands, options, keys of the configuration and the names that they can be set to. Of\n"
        'bash, zsh or fish; a line in ~/.bashrc: eval "$(jepa-vl completion bash)"',
        "jepa-vl completion bash",
        words="SHELL",
    ),
}
