"""A language model writes the thoughts that lead to the text after given places of a document.

It is shown the text before a place and nothing else. No copy is made, so none can be unfaithful or cut off,
and a model that cannot copy can annotate. The contexts of a document continue each other. They are asked for
at once and in their order, so the engine's prefix cache computes the document once (`docs/insertion.md`).
"""

from collections.abc import Sequence
from itertools import pairwise

from rationalyst_jax.lm.trees.reduction import reduce_logprobs
from rationalyst_jax.mine.config import AnnotateConfig
from rationalyst_jax.mine.documents import Document, Insertion, SampledPlace, SampledRationale
from rationalyst_jax.mine.places import find_places, largest
from rationalyst_jax.prompts.prompt import PromptSet
from rationalyst_jax.roles.drive import ask
from rationalyst_jax.roles.role import Role, Sampling, derived_seed
from rationalyst_jax.roles.usage import Usage


async def insert(
    document: Document, number: int, annotator: Role, prompts: PromptSet, config: AnnotateConfig
) -> tuple[Insertion, Usage]:
    """Samples rationales for the places of a document, which is at place `number` of the whole run."""
    text = document.text
    starts = find_places(text, config.places)
    if not starts:
        return Insertion(document, (), "sampled"), Usage()
    if annotator.count_tokens(text) > config.max_document_tokens:
        return Insertion(document, (), "too_long"), Usage()
    used = Usage()
    if config.most_places is not None and len(starts) > config.most_places:
        surprises, used = await _surprises(text, starts, annotator, prompts, config)
        starts = [starts[i] for i in largest(surprises, config.most_places)]

    prompt = prompts[config.prompt]
    asked = []
    for start, end in pairwise([*starts, len(text)]):
        how = Sampling(
            max_tokens=config.max_rationale_tokens,
            n=config.candidates,
            temperature=config.temperature,
            top_p=config.top_p,
            stop=(prompt.closing,) if prompt.closing else (),
            seed=derived_seed(config.seed, number, start),
            suppress=config.suppress,
        )
        request = annotator.to_generate(prompt, {"preceding": text[:start]}, how)
        if not annotator.has_room(request, config.max_rationale_tokens):
            break  # nor have the places after it
        asked.append(((start, end), how.seed, request))
    if not asked:
        return Insertion(document, (), "too_long"), used
    handles = await ask(*((annotator.model, request) for _, _, request in asked))
    places = []
    for ((start, end), seed, _), handle in zip(asked, handles, strict=True):
        used += Usage.of(annotator.model, handle)
        candidates = tuple(
            SampledRationale(generation.text, generation.finish) for generation in handle.result
        )
        places.append(SampledPlace(start, end, seed, candidates))
    return Insertion(document, tuple(places), "sampled"), used


async def _surprises(
    text: str, starts: Sequence[int], annotator: Role, prompts: PromptSet, config: AnnotateConfig
) -> tuple[list[float], Usage]:
    """How much (nats) the words after each place, up to the next one, surprise the model, for as many places
    as it has room for.

    That is the decayed sum of -log p which the filter's gain is a difference of: at best a rationale makes
    these words certain. The filter then looks further, up to the next place that was taken.
    """
    requests = []
    for start, end in pairwise([*starts, len(text)]):
        fields = {"preceding": text[:start]}
        request = annotator.to_score(prompts["follow"], fields, text[start:end], config.suppress)
        if not annotator.has_room(request, len(request.continuation)):
            break
        requests.append(request)
    if not requests:
        return [], Usage()
    handles = await ask(*((annotator.model, request) for request in requests))
    surprises = [-reduce_logprobs(handle.result, "decayed_sum") for handle in handles]
    return surprises, sum((Usage.of(annotator.model, handle) for handle in handles), Usage())
