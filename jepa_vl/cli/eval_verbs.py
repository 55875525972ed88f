"""The commands of evaluation."""

from jepa_vl.cli.verb import Verb

# What the value of an option stands for, where another command means something else by it.
SHAPES = {"--model": ("PATH", ""), "--data": ("KIND[:PATH]", "")}
VERBS = {
    "eval": Verb(
        "measure the frozen features of a checkpoint or of any encoder",
        "Pooled features, the default:\n"
        "knn      DINO's vote of the 10, 20, 100 and 200 nearest training images\n"
        "fast     logistic regression; its L2 is chosen within the training part\n"
        "fewshot  ridge regression from 5, 10 and 25 images a class\n"
        "lidar    how many directions tell images apart, whatever the crop; no labels\n"
        "Heads trained on crops, as papers quote them; eval.probe_steps shortens them:\n"
        "ijepa_vissl, mae_lars (LARS), dinov2_sgd (13 rates at once)\n"
        "attentive, attentive_one (a learned query reads the patches; 20 heads at once)\n"
        "finetune, finetune_low (of a copy; eval.shots images a class, or 1 % of the labels)\n"
        "segmentation (a linear map of patches; --data mask_folder:DIR, shapes_world)\n"
        "reference (loss of foretelling a frozen encoder, eval.reference, patch by patch)\n\n"
        "--step 0 measures the same network untrained. Prints a table and writes the card of the\n"
        "checkpoint: JSON and a page, the whole protocol beside each number, with intervals,\n"
        "floors and the images that were right. What the card has is not measured again.\n"
        "--config.data.* and --config.eval.* change the images, e.g.\n"
        "--data folder:DIR --config.eval.train_images=50000.",
        "jepa-vl eval --workdir runs/quickstart",
        overrides=("data.", "eval."),
        workdir="folder of the run; or give --model",
        model="an encoder by itself: a folder of transformers, timm or jepa-vl export, a file of "
        "weights, hub:OWNER/MODEL, zoo:NAME; its images are the built-in ones unless --data says",
        step="of the checkpoint (default: the newest); 0: untrained",
        branch="target (default), the EMA encoder, or context, the trained one",
        task="evaluators, separated by commas (default: knn,fast,fewshot,lidar)",
        data="other images than the run's, as in folder:DIR; kinds are those of data.kind",
        layers="pooled features of this many last blocks, side by side (default: 1)",
        floor="cheap (default): the untrained network and raw pixels, for tasks of pooled "
        "features; all: for every task; none",
        seed="of the images and the draws of protocols (default: the run's)",
        json="card to write (default: eval_STEP_BRANCH.json in the workdir); its page beside it",
        watch="evaluate each checkpoint of a run once, as it appears, until the run is over",
        again="measure also what the card has already",
        no_cache="neither keep nor look for pooled features in the cache ($JEPA_VL_CACHE)",
    ),
    "eval compare": Verb(
        "two cards of eval side by side",
        "Prints the numbers of both and their difference, with intervals by the bootstrap.\n"
        "That of the difference is paired: it needs the same images and the same protocol, else\n"
        "one line says what differs. For runs of other seeds give `eval` the same --seed.",
        "jepa-vl eval compare --first runs/a/eval_1000_target.json "
        "--second runs/b/eval_1000_target.json",
        first="",
        second="",
    ),
}
