"""_verbs - the verbs, imported only when a command runs: they bring torch and transformers."""

from typing import Any


def verbs() -> Any:
    """lowbit.verbs, with the libraries' own progress bars and advice switched off."""
    from transformers.utils import logging

    from lowbit import verbs as found

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    return found
