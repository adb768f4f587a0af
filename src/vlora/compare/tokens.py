"""The token that keeps an image's places in a text: found without growing the vocabulary, written, repeated.

LLaVA overwrites the embeddings at these places with visual tokens, but looks the token up before it does, so the
token must lie inside the embedding. A row more would be a row more in the head too: a logit more, and another loss
than that of the language model which both sides of a comparison share. So a token is taken that no text holds.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from jinja2 import TemplateError

from ..errors import UnsupportedModel
from ..model.loss import IGNORED

_MARKER = "<image>"
_IMAGE = re.compile(r"\W*(image|img)_?((soft_)?token|pad|patch)?\W*", re.IGNORECASE)
_RESERVED = re.compile(r"\W*(unused|reserved|extra_id|control|placeholder)", re.IGNORECASE)
_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")


def with_image_token(
    tokenizer: Any, *, rows: int, chat_template: str | None = None, wanted: str | None = None
) -> tuple[Any, str]:
    """A tokenizer that reads one token as the place of an image, and that token.

    In this order: a token made for images; `<image>`, where the embedding has a row that no token uses; a token kept
    in reserve; a special token without a use in a chat; the token for unknown characters, where they are read as
    bytes and so never unknown.

    Args:
        tokenizer: the language model's; is left as it is.
        rows: tokens that the language model's embedding holds.
        chat_template: a special token that it writes has a use.
        wanted: a token that is taken in place of all these.

    Returns:
        A copy of the tokenizer, and the token.

    Raises:
        UnsupportedModel: there is none, or the wanted one is none.
    """
    tokenizer = copy.deepcopy(tokenizer)
    if wanted is not None and wanted not in tokenizer.get_vocab():
        tokenizer.add_tokens([wanted], special_tokens=True)
    candidates = _candidates(tokenizer, rows, chat_template or "") if wanted is None else iter([wanted])
    for token in candidates:
        ids: list[int] = tokenizer.encode(token, add_special_tokens=False)
        if len(ids) == 1 and ids[0] < rows:
            if tokenizer.pad_token_id == ids[0]:  # a padded place must not be one of an image
                tokenizer.pad_token = tokenizer.eos_token
            return tokenizer, token
    what = "has no token to spare" if wanted is None else f"cannot spare {wanted!r}"
    raise UnsupportedModel(
        f"The tokenizer of this language model {what} for the places of an image among the {rows:,} of its embedding: "
        "give as image_token a special token of it that no text holds."
    )


def _candidates(tokenizer: Any, rows: int, template: str) -> Iterator[str]:
    roles = {getattr(tokenizer, role) for role in _ROLES}
    special = [str(token) for _, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
    free = [token for token in special if token not in roles]
    yield from (token for token in free if _IMAGE.fullmatch(token))
    free = [token for token in free if token not in template]
    if len(tokenizer) < rows and _MARKER not in tokenizer.get_vocab():
        tokenizer.add_tokens([_MARKER], special_tokens=True)
        yield _MARKER
    yield from (token for token in free if _RESERVED.match(token))
    yield from reversed(free)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    unknown = tokenizer.unk_token
    if unknown not in (None, tokenizer.bos_token, tokenizer.eos_token) and getattr(
        getattr(backend, "model", None), "byte_fallback", False
    ):
        yield unknown


# Makes text of messages in blocks, for a template that takes text only.
_FLATTEN = """\
{%- set flat = namespace(messages=[], text='') -%}
{%- for message in messages -%}
{%- if message['content'] is iterable and message['content'] is not string and message['content'] is not mapping -%}
{%- set flat.text = '' -%}
{%- for block in message['content'] -%}
{%- set flat.text = flat.text + (IMAGE if block['type'] == 'image' else block['text']) -%}
{%- endfor -%}
{%- set flat.messages = flat.messages + [dict(message, content=flat.text)] -%}
{%- else -%}
{%- set flat.messages = flat.messages + [message] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = flat.messages -%}
"""


def with_images(template: str, tokenizer: Any, token: str) -> str:
    """A chat template that writes the token of an image where a message has one.

    One that takes text only, as those of most language models, is told images as text; what else it writes stays.

    Args:
        template: Jinja.
        tokenizer: of `with_image_token`.
        token: likewise.
    """
    template = template.replace(_MARKER, token)
    content = [{"type": "image"}, {"type": "text", "text": "what"}]
    try:
        written: str = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], chat_template=template, tokenize=False
        )
    except (TemplateError, TypeError, ValueError):
        written = ""
    takes_images = written.count(token) == 1
    return template if takes_images else _FLATTEN.replace("IMAGE", json.dumps(token)) + template


def expand_images(
    input_ids: Sequence[int], labels: Sequence[int], *, image_token_id: int, tokens_per_image: int
) -> tuple[list[int], list[int]]:
    """Give each image of a text the places of its visual tokens: its one token is repeated.

    Args:
        input_ids: of a text, with one token for each of its images.
        labels: of the same length.
        image_token_id: that token.
        tokens_per_image: visual tokens of an image.

    Returns:
        Both, longer by `tokens_per_image - 1` for each image; visual tokens are never supervised.
    """
    ids: list[int] = []
    targets: list[int] = []
    for token, label in zip(input_ids, labels, strict=True):
        is_image = token == image_token_id
        ids += [token] * tokens_per_image if is_image else [token]
        targets += [IGNORED] * tokens_per_image if is_image else [label]
    return ids, targets
