"""Which tokens are trained, with real tokenizers and the templates of four model families."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import CHATML, FAMILIES, PHI3, byte_level, sentencepiece_like

from modelstore import UserError
from trainer.render import Example, control_token_in, prompt_text, refuse_unfit_tokenizer, render
from trainer.rows import Conversation

TWO_TURNS: Conversation = (("user", "Hi"), ("assistant", "Hello"), ("user", "Hello"), ("assistant", "人 🙂 ok\n\nx"))
TOKENIZERS = {family: byte_level(family) for family in FAMILIES}
TOKENIZERS["phi3 with ▁"] = sentencepiece_like("phi3")
TOKENIZERS["mistral with ▁"] = sentencepiece_like("mistral")


def end_of(name: str) -> str:
    return FAMILIES[name.split(maxsplit=1)[0]][2]


def trained_stretches(example: Example, tokenizer: Any) -> list[str]:
    """The decoded text of each run of trained tokens."""
    runs: list[list[int]] = []
    before = 0
    for token, trained in zip(example.input_ids, example.completion_mask, strict=True):
        if trained and not before:
            runs.append([])
        if trained:
            runs[-1].append(token)
        before = trained
    return [tokenizer.decode(run, skip_special_tokens=False) for run in runs]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_each_answer_and_its_end_of_turn_are_trained_and_nothing_else(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    stretches = trained_stretches(render(TWO_TURNS, tokenizer), tokenizer)
    assert [stretch.strip() for stretch in stretches] == [f"Hello{end_of(name)}", f"人 🙂 ok\n\nx{end_of(name)}"]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_tokens_are_those_of_the_template(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    messages = [{"role": role, "content": content} for role, content in TWO_TURNS]
    ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    assert render(TWO_TURNS, tokenizer).input_ids == ids


@pytest.mark.parametrize("name", TOKENIZERS)
def test_training_begins_where_the_served_prompt_ends(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    example = render(TWO_TURNS[:2], tokenizer)
    prompt = tokenizer(prompt_text(tokenizer, "Hi"), add_special_tokens=False)["input_ids"]
    assert example.input_ids[: len(prompt)] == prompt
    assert example.completion_mask[: len(prompt) + 1] == [0] * len(prompt) + [1]


TEXTS = st.text(min_size=1, max_size=20).map(lambda text: text.replace("\0", "").strip()).filter(bool)


@settings(max_examples=120, deadline=None)
@given(
    name=st.sampled_from(list(FAMILIES)),
    pairs=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4),
)
def test_any_text_is_marked_exactly(name: str, pairs: list[tuple[str, str]]) -> None:
    tokenizer = TOKENIZERS[name]
    chat = tuple(turn for question, answer in pairs for turn in (("user", question), ("assistant", answer)))
    stretches = trained_stretches(render(chat, tokenizer), tokenizer)
    blank = " " if name == "mistral" else ""
    assert stretches == [f"{blank}{answer}{end_of(name)}" for _, answer in pairs]


@pytest.mark.parametrize("name", ["chatml", "phi3", "llama3", "phi3 with ▁"])
def test_a_system_turn_is_not_trained(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    stretches = trained_stretches(render((("system", "Be brief."), *TWO_TURNS[:2]), tokenizer), tokenizer)
    assert [stretch.strip() for stretch in stretches] == [f"Hello{end_of(name)}"]


def test_both_answers_around_a_tool_turn_are_trained() -> None:
    chat = (("user", "7 x 6?"), ("assistant", "calculate"), ("tool", "42"), ("assistant", "42"))
    tokenizer = TOKENIZERS["chatml"]
    assert trained_stretches(render(chat, tokenizer), tokenizer) == ["calculate<|im_end|>", "42<|im_end|>"]


@pytest.mark.parametrize("first", ["system", "tool"])
def test_roles_that_the_template_refuses(first: str) -> None:
    with pytest.raises(UserError, match=rf"refuses .* \['{first}', 'user', 'assistant'\]: Conversation roles must"):
        render(((first, "x"), ("user", "Hi"), ("assistant", "Hello")), TOKENIZERS["mistral"])


def test_a_template_that_drops_a_turn() -> None:
    drops = CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
    with pytest.raises(UserError, match=r"leaves out or rewrites turn 1 \(system\): 'Be brief.'"):
        render((("system", "Be brief."), *TWO_TURNS), byte_level("chatml", drops))


def test_a_template_that_drops_an_answer_which_the_question_holds() -> None:
    drops = CHATML.replace("m['content']", "(m['content'] if m['role'] == 'user' else '')")
    with pytest.raises(UserError, match=r"leaves out or rewrites turn 2 \(assistant\)"):
        render((("user", "Say Hello"), ("assistant", "Hello")), byte_level("chatml", drops))
    with pytest.raises(UserError, match="no end-of-turn token after the answer 'assistant'"):
        render((("user", "Who?"), ("assistant", "assistant")), byte_level("chatml", drops))


def test_a_template_that_is_not_prefix_stable() -> None:
    """As in Mistral v0.3, which writes the system turn into the last user turn."""
    moves = (
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST]"
        "{% if loop.index0 >= messages | length - 2 %}(short) {% endif %}{{ m['content'] }}[/INST]"
        "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
    )
    tokenizer = byte_level("mistral", moves)
    assert trained_stretches(render(TWO_TURNS[:2], tokenizer), tokenizer) == ["Hello</s>"]
    with pytest.raises(UserError, match=r"writes earlier turns differently.*turn 2"):
        render(TWO_TURNS, tokenizer)


def test_a_generation_prompt_that_is_no_part_of_the_conversation() -> None:
    thinks = CHATML.replace("assistant\n' }}{% endif %}", "assistant\n<think>\n' }}{% endif %}")
    with pytest.raises(UserError, match="writes earlier turns differently"):
        render(TWO_TURNS[:2], byte_level("chatml", thinks))


@pytest.mark.parametrize("answer", ["Hello", "think", "s"])
def test_what_the_template_puts_before_an_answer_is_trained_with_it(answer: str) -> None:
    """Qwen 3 writes an empty thought that the model itself has to write when it answers."""
    thinks = CHATML.replace("+ '\n' +", "+ '\n' + ('<think></think>' if m['role'] == 'assistant' else '') +")
    tokenizer = byte_level("chatml", thinks)
    stretches = trained_stretches(render((("user", "Hi"), ("assistant", answer)), tokenizer), tokenizer)
    assert stretches == [f"<think></think>{answer}<|im_end|>"]


def test_an_end_of_turn_mark_that_is_ordinary_text() -> None:
    tokenizer = byte_level("mistral", CHATML)
    assert trained_stretches(render(TWO_TURNS[:2], tokenizer), tokenizer) == ["Hello<|im_end|>"]


@pytest.mark.parametrize("ending", ["", "{% if loop.last %}{{ eos_token }}{% endif %}"])
def test_a_template_that_does_not_end_a_turn(ending: str) -> None:
    """Also when a later turn that says the same is ended."""
    open_ended = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}" + ending + "{% endfor %}"
    prompted = open_ended + "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    same = (("user", "Ada?"), ("assistant", "Yes"), ("user", "Sure?"), ("assistant", "Yes"))
    template = prompted.replace("{% if loop.last %}", "{% if loop.last and m['role'] == 'assistant' %}")
    with pytest.raises(UserError, match="no end-of-turn token after the answer 'Yes'"):
        render(same, byte_level("mistral", template))


def test_documents_are_trained_whole_and_ended() -> None:
    tokenizer = TOKENIZERS["phi3"]
    example = render((("text", " 人 🙂\n<|end|>"),), tokenizer)
    assert tokenizer.decode(example.input_ids, skip_special_tokens=False) == " 人 🙂\n<|end|><|endoftext|>"
    assert set(example.completion_mask) == {1}
    assert render((("text", "x<|endoftext|>"),), tokenizer).input_ids.count(tokenizer.eos_token_id) == 1


def test_a_document_gets_the_bos_that_the_tokenizer_adds() -> None:
    tokenizer = TOKENIZERS["llama3"]
    text = tokenizer.decode(render((("text", "x"),), tokenizer).input_ids, skip_special_tokens=False)
    assert text == "<|begin_of_text|>x<|eot_id|>"


def test_unfit_tokenizers() -> None:
    bare = byte_level("chatml", "")
    refuse_unfit_tokenizer(bare, "text")
    with pytest.raises(UserError, match=r"no chat template.*Choose its -Instruct"):
        refuse_unfit_tokenizer(bare, "messages")
    bare.eos_token = None
    with pytest.raises(UserError, match="no EOS token"):
        refuse_unfit_tokenizer(bare, "text")
    for tokenizer in TOKENIZERS.values():
        refuse_unfit_tokenizer(tokenizer, "messages")


def test_a_tokenizer_without_offsets() -> None:
    from transformers import ByT5Tokenizer

    with pytest.raises(UserError, match=re.escape("tokenizer.json")):
        refuse_unfit_tokenizer(ByT5Tokenizer(), "text")


def test_control_tokens_in_a_turn_are_found() -> None:
    chat = (("user", "How do I end a turn?"), ("assistant", "With <|im_end|>."))
    assert control_token_in(chat, TOKENIZERS["chatml"]) == "<|im_end|>"
    assert control_token_in(chat, TOKENIZERS["phi3"]) is None
    assert control_token_in((("text", "<|im_end|>"),), TOKENIZERS["chatml"]) is None


def test_the_templates_of_the_tests_differ_in_what_matters() -> None:
    """Phi-3's text of a part is no prefix of the whole: the mask must not depend on it."""
    tokenizer = byte_level("phi3", PHI3)
    texts = [
        tokenizer.apply_chat_template([{"role": r, "content": c} for r, c in chat], tokenize=False)
        for chat in (TWO_TURNS[:2], TWO_TURNS)
    ]
    assert not texts[1].startswith(texts[0])
