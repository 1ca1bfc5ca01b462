"""A base model, ready to be adapted, together with everything that an adapter must remember about it."""

from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from neuralforge_common.errors import ModelError

END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """A frozen model in `eval()` mode with its tokenizer, and where the two came from.

    `name` is what was asked for, `source` the hub id, folder or file behind it, `revision` the hub's commit (None
    where there is none), `family` transformers' model_type, `license` empty where nobody knows. `notices` are lines
    for the person who asked.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    source: str
    revision: str | None
    family: str
    license: str
    fingerprint: str
    is_encoder_decoder: bool
    notices: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """How many numbers the base has; tied ones count once, an adapter's do not."""
        return sum(parameter.numel() for name, parameter in self.model.named_parameters() if ".lora_" not in name)

    @property
    def end_token_id(self) -> int:
        """The token that ends a completion."""
        return end_token_id(self.tokenizer)


def end_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """`<|endoftext|>` where the vocabulary has it, else the tokenizer's end of sequence.

    A chat model's end of sequence ends a turn of talk (`<|im_end|>`), not a piece of code.

    Raises:
        ModelError: the tokenizer has neither.
    """
    found = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    # Unknown tokens come back as the unknown token's id, so look at the way back too.
    if isinstance(found, int) and tokenizer.convert_ids_to_tokens(found) == END_OF_TEXT:
        return found
    if isinstance(tokenizer.eos_token_id, int):
        return tokenizer.eos_token_id
    raise ModelError(
        f"the tokenizer has no token that ends a text: neither {END_OF_TEXT} nor an eos_token",
        hint="set eos_token in the folder's tokenizer_config.json",
    )
