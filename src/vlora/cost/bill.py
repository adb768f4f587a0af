"""The bill: what an image and questions about it take, seen through weights and as visual tokens.

Here the formulas are put together; each number comes from `formulas.py`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..errors import InputError
from ..model.configuration import GeneratorConfig
from . import formulas
from .shapes import Encoder, Generator, LanguageModel, encoder, generator, language_model
from .sources import Source, find, is_checkpoint, text_part, vision_part

DEFAULT_LLM, DEFAULT_VISION = "vicuna-7b", "clip-vit-l-14-336"
DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}
LOGITS = ("all", "needed")


@dataclass(frozen=True)
class Inputs:
    """What is priced.

    Args:
        llm: name of the language model.
        vision: name of the vision encoder.
        text_tokens: C, of the prompt of one question.
        answer_tokens: of one answer; the first of them comes from the prefill, each other one is a decoding step.
        questions: Q, about one image, each with its own prompt and answer.
        visual_tokens: N, of the model that is compared with.
        logits: `all`, a prefill and a training step compute logits at every position, or `needed`, a prefill at the
            last one (as `generate` does) and a training step at those of the answer (as our trainer does).
        dtype: of the bytes.
    """

    llm: str
    vision: str
    text_tokens: int
    answer_tokens: int
    questions: int
    visual_tokens: int
    logits: str
    dtype: str


@dataclass(frozen=True)
class Shapes:
    """The three parts, as sizes.

    Args:
        language_model: the decoder.
        encoder: of images.
        generator: of weights.
        views: how often a VLoRA model looks at an image when it answers; in training it looks once.
    """

    language_model: LanguageModel
    encoder: Encoder
    generator: Generator
    views: int = 1


@dataclass(frozen=True)
class Parameters:
    """Numbers in each part, and in the two models; of the generator also in its parts."""

    encoder: int
    generator: int
    generator_trunks: int
    generator_heads: int
    generator_b: int
    projector: int
    language_model: int
    vlora: int
    visual_tokens: int


@dataclass(frozen=True)
class Inference:
    """FLOPs of Q questions about one image.

    Args:
        encoder: the vision encoder, once, or once for each view.
        bridge: the generator, or the projector, once; the generator's trunk once for each view.
        prefix: visual tokens that are prefilled once, for all questions; 0 unless they are kept in a cache.
        prefill: the prompt of one question (and its visual tokens, unless they are cached).
        wearing: what of `prefill` is the low-rank path.
        decode: the first decoding step of an answer.
        answer: all decoding steps of one answer.
        first_token: once and the first prefill, the price of the first token.
        question: prefill and answer.
        total: once, and Q questions.
    """

    encoder: int
    bridge: int
    prefix: int
    prefill: int
    wearing: int
    decode: int
    answer: int
    first_token: int
    question: int
    total: int

    @property
    def once(self) -> int:
        """What is paid per image, whatever is asked."""
        return self.encoder + self.bridge + self.prefix


@dataclass(frozen=True)
class Advantage:
    """For which numbers of questions VLoRA computes less.

    Args:
        first: the smallest such number.
        last: the largest; None if there is no end.
    """

    first: int = 1
    last: int | None = None


@dataclass(frozen=True)
class State:
    """Bytes that one image takes between two questions, in the four forms it can be kept in."""

    features: int
    visual_parameters: int
    perceptual_weights: int
    kv_cache: int


@dataclass(frozen=True)
class TrainingStep:
    """FLOPs of a training step on one image and Q questions, each a row of prompt and answer."""

    forward: int
    backward: int
    total: int


@dataclass(frozen=True)
class Training:
    """Stage 1 trains the generator or the projector, stage 2 the language model with it; encoders stay frozen."""

    vlora_stage1: TrainingStep
    vlora_stage2: TrainingStep
    visual_tokens_stage1: TrainingStep
    visual_tokens_stage2: TrainingStep


@dataclass(frozen=True)
class Ratios:
    """FLOPs of VLoRA over those of the visual-token model; below 1, VLoRA computes less.

    Args:
        language_side: generator and prefill over projector and prefill, the encoder left out.
        first_token: with the encoder.
        total: Q questions with their answers.
        total_cached: the same, against a visual-token model that keeps the image in a cache.
        training_stage1, training_stage2: of a training step.
        state: bytes of perceptual weights over those of the visual tokens' keys and values.
    """

    language_side: float
    first_token: float
    total: float
    total_cached: float
    training_stage1: float
    training_stage2: float
    state: float


@dataclass(frozen=True)
class Bill:
    """Everything that was counted, and the sizes it was counted for."""

    inputs: Inputs
    shapes: Shapes
    parameters: Parameters
    vlora: Inference
    visual_tokens: Inference
    visual_tokens_cached: Inference
    ratios: Ratios
    advantage: Advantage | None
    advantage_cached: Advantage | None
    state_bytes: State
    training: Training

    def to_dict(self) -> dict[str, Any]:
        """As JSON; every amount of work is in FLOPs, two to a multiply-accumulate."""
        facts = asdict(self)
        work = {name: facts.pop(name) for name in ("vlora", "visual_tokens", "visual_tokens_cached", "training")}
        sizes = facts["shapes"]["generator"]
        sizes["places"] = [place._asdict() for place in self.shapes.generator.places]
        head = {"formulas_version": formulas.VERSION, "flops_per_mac": formulas.FLOPS_PER_MAC}
        return head | {"inputs": facts.pop("inputs"), "parameters": facts.pop("parameters"), "flops": work} | facts


def cost(
    llm: Source | None = None,
    vision: Source | None = None,
    *,
    model: Source | None = None,
    options: dict[str, Any] | None = None,
    text_tokens: int = 32,
    answer_tokens: int = 32,
    questions: int = 1,
    visual_tokens: int | None = None,
    logits: str = "all",
    dtype: str = "bfloat16",
) -> Bill:
    """Price an image and questions about it, without loading a weight.

    Args:
        llm: the language model: a name of `known.py`, a config.json, a folder that holds one, or a configuration.
            A VLoRA checkpoint here or at `vision` is taken as `model`, if that is not given. Default: Vicuna-7B.
        vision: the vision encoder, likewise. Default: CLIP ViT-L/14 of 336 pixels.
        model: a VLoRA checkpoint (`nano`, a folder, a `VLoRAConfig`), for every part that is not given.
        options: fields of `GeneratorConfig` that replace those of the checkpoint, or the authors' settings.
        text_tokens: see `Inputs`, as the rest.
        answer_tokens: at least 1.
        questions: at least 1.
        visual_tokens: default: as many as there are features.
        logits: `all` or `needed`.
        dtype: `float32`, `bfloat16` or `float16`.

    Raises:
        InputError: numbers of tokens or questions below 1, unknown `logits` or `dtype`.
        ConfigError: a generator that cannot be, or that does not fit the language model.
        ModelNotFound, CheckpointError, UnsupportedModel: see `sources.find`.
    """
    shapes, names = read_shapes(llm, vision, model=model, options=options)
    inputs = Inputs(
        *names,
        text_tokens=text_tokens,
        answer_tokens=answer_tokens,
        questions=questions,
        visual_tokens=shapes.encoder.features if visual_tokens is None else visual_tokens,
        logits=logits,
        dtype=dtype,
    )
    _check(inputs)
    return price(shapes, inputs)


def read_shapes(
    llm: Source | None, vision: Source | None, *, model: Source | None, options: dict[str, Any] | None
) -> tuple[Shapes, tuple[str, str]]:
    """The sizes of the three parts, and the names of the two models; see `cost`."""
    language, eyes, whole = (None if source is None else find(source) for source in (llm, vision, model))
    if whole is not None and not is_checkpoint(whole):
        raise InputError(
            f"{whole.name!r} is a model of type {whole.config.model_type!r}, not a VLoRA checkpoint: "
            "give a language model with --llm (llm=), a vision encoder with --vision (vision=)."
        )
    whole = whole or next((part for part in (language, eyes) if part is not None and is_checkpoint(part)), None)
    language = language or whole or find(DEFAULT_LLM)
    eyes = eyes or whole or find(DEFAULT_VISION)
    base = GeneratorConfig() if whole is None else whole.config.generator_config
    select = "default" if whole is None else whole.config.vision_feature_select_strategy
    decoder = language_model(text_part(language.config))
    tower = encoder(vision_part(eyes.config), select=select)
    written = generator(_with_options(base, options or {}), decoder, tower)
    views = 1 if whole is None else len(whole.config.views)
    return Shapes(decoder, tower, written, views), (language.name, eyes.name)


def _with_options(base: GeneratorConfig, options: dict[str, Any]) -> GeneratorConfig:
    if "layer_step" in options and "layers" not in options:
        options = options | {"layers": None}  # a step counts only where no layers are named
    fields = {name: getattr(base, name) for name in GeneratorConfig.__annotations__}
    return GeneratorConfig(**(fields | options))


def _check(inputs: Inputs) -> None:
    for name in ("text_tokens", "answer_tokens", "questions", "visual_tokens"):
        if getattr(inputs, name) < 1:
            raise InputError(f"{name} is {getattr(inputs, name)}; it must be at least 1.")
    for name, allowed in (("logits", LOGITS), ("dtype", tuple(DTYPES))):
        if getattr(inputs, name) not in allowed:
            raise InputError(f"{name} is {getattr(inputs, name)!r}; give one of {', '.join(allowed)}.")


def price(shapes: Shapes, inputs: Inputs) -> Bill:
    """Put the formulas together, for sizes and inputs that are in order."""
    vlora = vlora_inference(shapes, inputs)
    tokens = visual_token_inference(shapes, inputs, cached=False)
    cached = visual_token_inference(shapes, inputs, cached=True)
    state, training = _state(shapes, inputs), _training(shapes, inputs)
    return Bill(
        inputs=inputs,
        shapes=shapes,
        parameters=_parameters(shapes),
        vlora=vlora,
        visual_tokens=tokens,
        visual_tokens_cached=cached,
        ratios=Ratios(
            language_side=(vlora.bridge + vlora.prefill) / (tokens.bridge + tokens.prefill),
            first_token=vlora.first_token / tokens.first_token,
            total=vlora.total / tokens.total,
            total_cached=vlora.total / cached.total,
            training_stage1=training.vlora_stage1.total / training.visual_tokens_stage1.total,
            training_stage2=training.vlora_stage2.total / training.visual_tokens_stage2.total,
            state=state.perceptual_weights / state.kv_cache,
        ),
        advantage=advantage(vlora, tokens),
        advantage_cached=advantage(vlora, cached),
        state_bytes=state,
        training=training,
    )


def vlora_inference(shapes: Shapes, inputs: Inputs) -> Inference:
    """Look once; each question prefills C tokens and decodes, wearing the weights."""
    llm, weights, text = shapes.language_model, shapes.generator, inputs.text_tokens
    steps = inputs.answer_tokens - 1
    wearing = formulas.wearing_macs(weights, text)
    return _inference(
        inputs,
        encoder=shapes.views * formulas.encoder_macs(shapes.encoder),
        bridge=formulas.generator_macs(weights, shapes.views),
        prefill=formulas.llm_macs(llm, text, text, _prefill_logits(inputs, text)) + wearing,
        wearing=wearing,
        decode=formulas.decoding_macs(llm, text, 1) + formulas.wearing_macs(weights, 1),
        answer=formulas.decoding_macs(llm, text, steps) + formulas.wearing_macs(weights, steps),
    )


def visual_token_inference(shapes: Shapes, inputs: Inputs, *, cached: bool) -> Inference:
    """Encode and project once; each question prefills N + C tokens, or C after N that were prefilled once."""
    llm, text, visual = shapes.language_model, inputs.text_tokens, inputs.visual_tokens
    context = visual + text
    new = text if cached else context
    return _inference(
        inputs,
        encoder=formulas.encoder_macs(shapes.encoder),
        bridge=formulas.projector_macs(shapes.encoder.dim, llm, visual),
        prefix=formulas.llm_macs(llm, visual, visual, 0) if cached else 0,
        prefill=formulas.llm_macs(llm, new, context, _prefill_logits(inputs, new)),
        decode=formulas.decoding_macs(llm, context, 1),
        answer=formulas.decoding_macs(llm, context, inputs.answer_tokens - 1),
    )


def _inference(
    inputs: Inputs,
    *,
    encoder: int,
    bridge: int,
    prefill: int,
    decode: int,
    answer: int,
    prefix: int = 0,
    wearing: int = 0,
) -> Inference:
    """MACs to FLOPs, and the sums."""
    once, question = encoder + bridge + prefix, prefill + answer
    macs = {
        "encoder": encoder,
        "bridge": bridge,
        "prefix": prefix,
        "prefill": prefill,
        "wearing": wearing,
        "decode": decode,
        "answer": answer,
        "first_token": once + prefill,
        "question": question,
        "total": once + inputs.questions * question,
    }
    return Inference(**{name: formulas.FLOPS_PER_MAC * count for name, count in macs.items()})


def _prefill_logits(inputs: Inputs, tokens: int) -> int:
    return tokens if inputs.logits == "all" else 1


def advantage(vlora: Inference, other: Inference) -> Advantage | None:
    """For how many questions VLoRA computes less, None if for no number: both bills are straight lines in Q."""
    ahead, gain = other.once - vlora.once, other.question - vlora.question  # it saves ahead + Q · gain
    if gain > 0:
        return Advantage(first=max(1, -ahead // gain + 1))
    if gain == 0:
        return Advantage() if ahead > 0 else None
    last = (ahead - 1) // -gain
    return Advantage(last=last) if last >= 1 else None


def _parameters(shapes: Shapes) -> Parameters:
    eyes, llm = formulas.encoder_parameters(shapes.encoder), formulas.llm_parameters(shapes.language_model)
    weights = formulas.generator_parameters(shapes.generator)
    projector = formulas.projector_parameters(shapes.encoder.dim, shapes.language_model)
    return Parameters(
        encoder=eyes,
        generator=weights,
        generator_trunks=formulas.trunk_parameters(shapes.generator),
        generator_heads=formulas.head_parameters(shapes.generator),
        generator_b=formulas.b_parameters(shapes.generator),
        projector=projector,
        language_model=llm,
        vlora=eyes + weights + llm,
        visual_tokens=eyes + projector + llm,
    )


def _state(shapes: Shapes, inputs: Inputs) -> State:
    item = DTYPES[inputs.dtype]
    return State(
        features=shapes.views * formulas.feature_bytes(shapes.generator, item),
        visual_parameters=formulas.visual_parameters_bytes(shapes.generator, item),
        perceptual_weights=formulas.perceptual_weights_bytes(shapes.generator, item),
        kv_cache=formulas.kv_cache_bytes(shapes.language_model, inputs.visual_tokens, item),
    )


def _training(shapes: Shapes, inputs: Inputs) -> Training:
    return Training(
        vlora_stage1=_vlora_step(shapes, inputs, llm_trained=False),
        vlora_stage2=_vlora_step(shapes, inputs, llm_trained=True),
        visual_tokens_stage1=_visual_token_step(shapes, inputs, llm_trained=False),
        visual_tokens_stage2=_visual_token_step(shapes, inputs, llm_trained=True),
    )


def _vlora_step(shapes: Shapes, inputs: Inputs, *, llm_trained: bool) -> TrainingStep:
    llm, weights = shapes.language_model, shapes.generator
    tokens = inputs.text_tokens + inputs.answer_tokens
    logits = _training_logits(inputs, tokens)
    row = formulas.llm_macs(llm, tokens, tokens, logits) + formulas.wearing_macs(weights, tokens)
    row_back = formulas.llm_backward_macs(
        llm, tokens, logits, generator=weights, input_trained=llm_trained, weights_trained=llm_trained
    )
    forward = formulas.encoder_macs(shapes.encoder) + formulas.generator_macs(weights) + inputs.questions * row
    return _step(forward, formulas.generator_backward_macs(weights) + inputs.questions * row_back)


def _visual_token_step(shapes: Shapes, inputs: Inputs, *, llm_trained: bool) -> TrainingStep:
    llm, visual = shapes.language_model, inputs.visual_tokens
    tokens = visual + inputs.text_tokens + inputs.answer_tokens
    logits = _training_logits(inputs, tokens)
    sizes = (shapes.encoder.dim, llm, visual)
    row = formulas.llm_macs(llm, tokens, tokens, logits)
    row_back = formulas.llm_backward_macs(
        llm, tokens, logits, generator=None, input_trained=True, weights_trained=llm_trained
    )
    forward = formulas.encoder_macs(shapes.encoder) + formulas.projector_macs(*sizes) + inputs.questions * row
    return _step(forward, formulas.projector_backward_macs(*sizes) + inputs.questions * row_back)


def _training_logits(inputs: Inputs, tokens: int) -> int:
    return tokens if inputs.logits == "all" else inputs.answer_tokens


def _step(forward: int, backward: int) -> TrainingStep:
    flops = formulas.FLOPS_PER_MAC
    return TrainingStep(flops * forward, flops * backward, flops * (forward + backward))
