"""The commands of scaling-law studies."""

from jepa_vl.cli.verb import Verb

VERBS = {
    "scaling plan": Verb(
        "which sizes at which budgets, for how many steps",
        "Reads a study file: arms, sizes, budgets in FLOPs, seeds, and rules for batch, learning\n"
        "rate, EMA and warm-up. Counts the FLOPs of each size, and prints which points would run\n"
        "for how long and which are refused, and why. Trains nothing. With --out the plan is\n"
        "stored for `jepa-vl scaling run`, and a ledger that lies there moves the best sizes.",
        "jepa-vl scaling plan --study studies/scaling.py --out runs/scaling",
        study="",
        out="folder of the study: plan.json is written, ledger.jsonl read",
        topology="also compile each size for it: what does not fit is refused, chip-hours counted",
        json="file to write",
    ),
    "scaling run": Verb(
        "train and evaluate the points of a plan, or print how to",
        "Each point is a `jepa-vl train` that resumes and a `jepa-vl eval` of its last\n"
        "checkpoint; its row goes to OUT/ledger.jsonl. SIGINT and SIGTERM let the points save;\n"
        "the same command goes on, and several on one folder share the work. What has failed\n"
        "stays as it is, with its reason, unless --retry. With --commands nothing is run: one\n"
        "launch command a row is printed, and --collect later evaluates and enters what such runs\n"
        "have left in OUT. Exit code 3 where it was stopped, or others still work on points.",
        "jepa-vl scaling run --study studies/scaling.py --out runs/scaling --parallel 2",
        study="",
        out="folder of the study",
        parallel="points at a time (default: 1)",
        commands="print commands for: local, slurm, tpu_vm, xpk or jobset",
        options="of that launcher, as in '--cluster C --image I --type v5e-256'",
        collect="only what has been trained already: evaluate it and write its row",
        retry="also points that have failed",
        replan="make plan.json anew, from the ledger so far",
    ),
    "scaling ledger": Verb(
        "how far a study is, and its points as a table",
        "Prints a line a point, done or not; --csv writes all that is known of each.",
        "jepa-vl scaling ledger --ledger runs/scaling --csv points.csv",
        ledger="",
        csv="file to write: a line a point",
    ),
    "scaling fit": Verb(
        "fit a scaling law to a table or a ledger",
        "L(N, D) = E + A / N^alpha + B / D^beta, of a CSV file with a header, a row a\n"
        "measurement, or of a study's ledger: by variable projection (vp, least squares of L) or\n"
        "from many starts by Huber's loss of log L (huber). Prints the parameters with 95 %\n"
        "intervals by the bootstrap over runs, the sizes that are best by parabolas through\n"
        "budgets, and how well the largest budget is foretold from the others. Of a ledger N is\n"
        "the encoder's parameters, D images seen, and points weigh as their seeds agree.",
        "jepa-vl scaling fit --csv points.csv --size N --data D --loss loss --json fit.json",
        csv="table to read, with a header; or give --ledger",
        size="column of sizes, parameters say",
        data="column of what was seen, images or tokens",
        loss="column of what the law predicts",
        ledger="of a study, or its folder; or give --csv",
        y="of a ledger: knn_error (default), fewshot_error, probe_error, reference_loss, or "
        "train_loss by --force",
        arm="of a ledger: the one that is fitted",
        force="fit the raw training loss all the same",
        run="column that tells runs apart (default: each row is one)",
        method="vp (default) or huber",
        drop_highest="leave out so many rows of the highest loss (default: 0)",
        draws="of the bootstrap (default: 1000)",
        seed="of the bootstrap (default: 0)",
        predict="SIZE,DATA of a run whose loss is foretold",
        json="file to write",
    ),
    "scaling report": Verb(
        "a study as one page: curves, laws, forecast, and what they cannot say",
        "Fits each arm of a ledger and writes report.html, its pictures as PNG, report.json and\n"
        "points.csv: quality over size at equal compute, best size and data over compute, the law\n"
        "with its band, residuals, the largest budget foretold from the others, arms compared\n"
        "with intervals. Where the points carry no fit the page says why.",
        "jepa-vl scaling report --ledger runs/scaling --out runs/scaling/report --forecast 1e13",
        ledger="",
        out="folder to write",
        y="knn_error (default), probe_error, fewshot_error, reference_loss; train_loss with "
        "--force",
        force="fit the raw training loss all the same",
        forecast="foretell the best run of so many FLOPs, or one of size N and D images",
        draws="of the bootstrap (default: 1000)",
    ),
    "scaling coords": Verb(
        "do layers move as far at every width? standard and muP side by side",
        "Trains models of several widths for some steps on one batch (ijepa or tcjepa), without\n"
        "and with muP from the narrowest on, and prints the slope of log change over log width of\n"
        "each layer: 0 where a learning rate can be taken from a narrow model to a wide one.\n"
        "Predictor, MLPs and the number of heads grow with the encoder; text towers stay.",
        "jepa-vl scaling coords --config configs/quickstart.py --widths 48,96,192 --out coords",
        config="",
        widths="encoder widths, growing (default: that of the configuration, twice, four times)",
        steps="of training (default: 5)",
        out="folder for coords.png and coords.json",
    ),
}
