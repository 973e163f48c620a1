"""Text to token ids and back, and messages to a prompt, for one model folder. Torch-free.

Encoding is the `tokenizers` library's; decoding is `quire.engine.vocabulary`'s, one definition for whole texts and
streams; chat templates are `quire.engine.chat_template`'s.

The special-token guard. A special token's text inside a message must not become the special token. When, and only when,
some string of the request contains such text, those occurrences are replaced by private-use characters that the request
does not contain, the template is rendered, and the pieces between true special tokens that hold such a character are
encoded with the original text back in place and special tokens switched off. Every other prompt takes the plain path.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from quire.engine.chat_template import ChatTemplate, ChatTemplateError
from quire.engine.errors import ModelError
from quire.engine.gguf_file import is_gguf
from quire.engine.gguf_tokenizer import read_gguf_tokenizer
from quire.engine.special_text import SpecialTextGuard
from quire.engine.tokenizer_files import TokenizerFiles, read_tokenizer_files
from quire.engine.vocabulary import TextStream, UnknownDecoder, Vocabulary

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]] | None


class Tokenizer:
    """The tokenizer of one model. Read-only after construction; its methods may run in any thread.

    `eos_token_ids` holds the tokenizer's own and those that were given; `warnings` what the operator should know.
    """

    def __init__(self, files: TokenizerFiles, *, model_name: str, eos_token_ids: Iterable[int] = ()) -> None:
        self.files = files
        self.model_name = model_name
        self._backend = self._new_backend()
        self._text_only: Backend | None = None
        self._space_at_start = False
        added = self._backend.get_added_tokens_decoder()
        tokens = {token_id: token for token, token_id in self._backend.get_vocab(with_added_tokens=True).items()}
        self.special_tokens = {token.content: token_id for token_id, token in added.items() if token.special}
        """Text to id of every token that is special: the control tokens of the model."""
        try:
            self.vocabulary = Vocabulary(tokens, self.special_tokens.values(), _state(self._backend.decoder))
        except UnknownDecoder as error:
            fix = "byte-level and sentencepiece-style tokenizers are supported"
            raise ModelError(model_name, "the tokenizer is unknown", files.file, str(error), fix) from error
        self.vocab_size = self.vocabulary.size
        """The highest token id plus one."""
        self.max_token_bytes = self.vocabulary.max_token_bytes
        self.bos_token_id = self._named_id("bos_token")
        self.eos_token_id = self._named_id("eos_token")
        own = () if self.eos_token_id is None else (self.eos_token_id,)
        self.eos_token_ids = frozenset((*own, *eos_token_ids))
        self.warnings: tuple[str, ...] = ()
        if not self.eos_token_ids:
            self.warnings = (f"model {model_name}: no end-of-sequence token; answers end at max_tokens only",)
        self._templates = {name: self._compile(name, source) for name, source in files.templates.items()}
        self._guard = SpecialTextGuard(self.special_tokens)

    @classmethod
    def from_folder(
        cls,
        folder: Path | str,
        *,
        model_name: str | None = None,
        model_vocab_size: int | None = None,
        eos_token_ids: Iterable[int] = (),
        chat_template: Path | None = None,
        check_template: bool = True,
    ) -> Tokenizer:
        """Read a model folder or a GGUF file; raises ModelError for whatever cannot be served.

        `model_vocab_size` is the number of rows of the model's embedding: no token id may lie beyond. `chat_template`
        is a file that replaces the folder's own. `check_template` renders a small chat in a process that is killed
        when it does not end.
        """
        folder = Path(folder)
        name = model_name or folder.name
        files = read_gguf_tokenizer(folder, name) if is_gguf(folder) else read_tokenizer_files(folder, name)
        if chat_template is not None:
            files = TokenizerFiles(
                files.json,
                files.special_tokens,
                {"default": _read_template(chat_template, name)},
                chat_template.name,
                files.file,
            )
        tokenizer = cls(files, model_name=name, eos_token_ids=eos_token_ids)
        if model_vocab_size is not None and tokenizer.vocab_size > model_vocab_size:
            why = f"its highest token id is {tokenizer.vocab_size - 1}, and the model has {model_vocab_size} rows"
            fix = "take tokenizer and weights from the same model"
            raise ModelError(name, "the tokenizer does not belong to the model", files.file, why, fix)
        if check_template and files.templates:
            from quire.engine.text_worker import check_templates

            check_templates(files, name)
        return tokenizer

    @property
    def has_chat_template(self) -> bool:
        """Whether `render_chat` and `encode_chat` can work at all."""
        return bool(self._templates)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`; special-token text in it becomes the special token."""
        ids: list[int] = self._backend.encode(_encodable(text), add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`, as the start of a text."""
        return self.vocabulary.decode(ids, skip_special_tokens=skip_special_tokens)

    def stream(self, *, skip_special_tokens: bool, continues: bool) -> TextStream:
        """A decoder for one growing list of ids; `continues` when it follows on a prompt."""
        return TextStream(self.vocabulary, skip_special_tokens=skip_special_tokens, continues=continues)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for."""
        return self.vocabulary.token_bytes(token_id)

    def token_text(self, token_id: int) -> str:
        """The text of one token alone: U+FFFD where its bytes are no whole characters."""
        return self.vocabulary.token_bytes(token_id).decode("utf-8", "replace")

    def render_chat(
        self,
        messages: Messages,
        *,
        tools: Tools = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt text of a chat; raises ChatTemplateError with the template's own text."""
        name = "tool_use" if tools and "tool_use" in self._templates else "default"
        template = self._templates.get(name)
        if template is None:
            raise ChatTemplateError(f"model {self.model_name} has no chat template; use /v1/completions")
        return template.render(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            template_kwargs=template_kwargs,
        )

    def encode_chat(
        self,
        messages: Messages,
        *,
        tools: Tools = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The prompt ids of a chat, special-token text of the request kept as text; raises ChatTemplateError."""
        replaced, originals = self._guard.replace({"messages": messages, "tools": tools, "kwargs": template_kwargs})
        text = self.render_chat(
            replaced["messages"],
            tools=replaced["tools"],
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            template_kwargs=replaced["kwargs"],
        )
        if not originals:
            return self.encode(text, add_special_tokens=False)
        ids: list[int] = []
        for piece, guarded in self._guard.pieces(text, originals):
            if not guarded:
                ids += self.encode(piece, add_special_tokens=False)
            else:
                ids += self._encode_text_only(piece, first=not ids)
        return ids

    def _encode_text_only(self, text: str, *, first: bool) -> list[int]:
        """Ids of `text` with special tokens switched off; `first` when nothing stands before it."""
        backend = self._text_only or self._make_text_only()
        text = _encodable(text)
        ids: list[int] = backend.encode(text, add_special_tokens=False).ids
        if first or not self._space_at_start:
            return ids
        newline = backend.encode("\n", add_special_tokens=False).ids
        after: list[int] = backend.encode("\n" + text, add_special_tokens=False).ids
        return after[len(newline) :] if after[: len(newline)] == newline else ids

    def _make_text_only(self) -> Backend:
        """A second tokenizer that knows no special tokens; made at first need."""
        backend = self._new_backend()
        backend.encode_special_tokens = True
        some = next(iter(self.special_tokens))
        after_special = self._backend.encode(some + "a", add_special_tokens=False).ids[1:]
        self._space_at_start = after_special != self._backend.encode("a", add_special_tokens=False).ids
        """Whether a text's first piece is encoded unlike the same piece after a special token (sentencepiece)."""
        self._text_only = backend
        return backend

    def _new_backend(self) -> Backend:
        try:
            backend = Backend.from_str(self.files.json)
        except Exception as error:  # the library raises nothing more exact
            fix = "fetch the file again; its tokenizer must be one of the tokenizers library"
            why = str(error)[:200]
            raise ModelError(self.model_name, "the tokenizer is corrupt", self.files.file, why, fix) from error
        backend.no_truncation()
        backend.no_padding()
        return backend

    def _named_id(self, name: str) -> int | None:
        token = self.files.special_tokens.get(name)
        token_id: int | None = None if token is None else self._backend.token_to_id(token)
        return token_id

    def _compile(self, name: str, source: str) -> ChatTemplate:
        try:
            return ChatTemplate(source, self.files.special_tokens)
        except ChatTemplateError as error:
            what = "the chat template is broken" if name == "default" else f"the chat template {name!r} is broken"
            fix = "mend it, or give another with --chat-template"
            raise ModelError(self.model_name, what, self.files.template_file, str(error), fix) from error


def _read_template(path: Path, model_name: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fix = "name a readable UTF-8 file with --chat-template"
        raise ModelError(model_name, "the chat template cannot be read", path.name, str(error), fix) from error


def _state(decoder: Any) -> Mapping[str, Any] | None:
    """The decoder's entry in tokenizer.json."""
    state: Mapping[str, Any] | None = None if decoder is None else json.loads(decoder.__getstate__())
    return state


def _encodable(text: str) -> str:
    """`text` with lone surrogates (which no UTF-8 can hold) replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
