"""What a command of ``jepa-vl`` says of itself."""


class Verb:
    """One command: its module, options and texts; ``module.run(args, overrides)`` does the work."""

    def __init__(
        self,
        summary: str,
        text: str,
        example: str,
        overrides: tuple[str, ...] = (),
        **options: str,
    ):
        """``overrides``: beginnings of the keys that --config.KEY=VALUE may change.

        A verb that takes --config may change all of them. ``options``: names (step_seconds is
        --step-seconds) and their help. Empty text: it must be given; its help is the shared one.
        """
        self.summary, self.text, self.example, self.options = summary, text, example, options
        self.overrides = ("",) if "config" in options else overrides
