"""The world's tokenizer: one token per word and per small number, bytes for everything else.

A Unigram model whose known pieces all cost the same spells a text with as few pieces as possible; what no
piece covers falls back to bytes, so every text comes back exactly. Words carry their leading space.
"""

import re

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rationalyst_jax.world.corpus import FINISHED, VACUOUS
from rationalyst_jax.world.problems import KINDS, NAMES, OBJECTS

BOS, EOS = "<s>", "</s>"
MARKERS = ("<BOT>", "<EOT>", "<|copy|>")
# A base model's chat template: contents follow each other verbatim, a finished reply ends the document.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
_WORD = r" ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]|\s"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The world's tokenizer, built from the generator's own templates."""
    # In a document a sentence follows another one, so its first word has a space too.
    texts = [" " + form for kind in KINDS.values() for form in (*kind.seen, kind.unseen)]
    texts += [*VACUOUS, FINISHED]
    texts += [way.thought for kind in KINDS.values() for way in (kind.right, kind.wrong)]
    texts += [" How many does have?", "\nThe answer is", "So Ann had have", "At first Ann has"]
    texts += (
        [f" {word}" for word in (*NAMES, *OBJECTS)]
        + [f" {n}" for n in range(100)]
        + [f" {op}" for op in "+-*/="]
    )
    template_slot = re.compile(r"\{[a-z]\}")
    pieces = sorted({word for text in texts for word in re.findall(_WORD, template_slot.sub("Ann", text))})
    raw_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = [(token, 0.0) for token in (BOS, EOS, *MARKERS)]
    vocabulary += [(token, -100.0) for token in raw_bytes] + [(piece, -1.0) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (BOS, EOS)])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in MARKERS])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS)
    fast.chat_template = CHAT_TEMPLATE
    return fast
