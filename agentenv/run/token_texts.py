"""Texts of single tokens, for people who read token sequences.

They are not stored with a run: a report asks the tokenizer named in the run's config for the text of every id it
shows. A character that several tokens share shows as replacement marks; ids and log-probs are always exact.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

logger = logging.getLogger(__name__)

TokenTexts = Callable[[Sequence[int]], list[str]]
"""Token ids to one text each."""


def tokenizer_texts(name: str | None) -> TokenTexts | None:
    """Texts by a tokenizer that is a folder or in the local cache; None, with a warning, where it is not."""
    if not name:
        return None
    from transformers import AutoTokenizer  # noqa: PLC0415 - heavy, and only reports need it

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        logger.warning("the report shows token ids without texts: tokenizer %r: %s", name, reason)
        return None
    return lambda ids: [_decode(tokenizer, token) for token in ids]


def _decode(tokenizer: object, token: int) -> str:
    try:
        return str(tokenizer.decode([token], clean_up_tokenization_spaces=False))  # type: ignore[attr-defined]
    except (IndexError, KeyError, OverflowError, TypeError, ValueError):
        return f"<{token}?>"  # an id the tokenizer does not have
