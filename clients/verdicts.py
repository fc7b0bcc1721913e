"""What a comparison permits to say, as a sentence with its sample size, in English and Chinese."""

from __future__ import annotations

from clients.statistics import LEVEL, Comparison, needed_questions

NOTHING = {"en": "No question was answered by both.", "zh": "没有一道题同时得到两个模型的回答。"}


def verdict(found: Comparison, language: str = "en", name: str = "tuned") -> str:
    """What may be concluded about the model `name` against its reference."""
    conclusion = _chinese if language == "zh" else _english
    return conclusion(found, name)


def conclusion(found: Comparison, p_value: float) -> str:
    """better, worse or unclear, at the stated level."""
    if p_value >= LEVEL:
        return "unclear"
    return "better" if found.difference > 0 else "worse"


def _english(found: Comparison, name: str) -> str:
    points = (
        f"{100 * abs(found.difference):.1f} points (95% interval {100 * found.low:+.1f} to {100 * found.high:+.1f})"
    )
    proof = f"on {found.questions} paired questions, {_test(found)} {p_text(found.p_value)}"
    word = conclusion(found, found.p_value)
    if word != "unclear":
        return f"The {name} model is {word} than the base model by {points} {proof}."
    more = _more(found)
    tail = f" {more} more would be needed to see a difference of 10 points." if more else ""
    return (
        f"Cannot tell the {name} model from the base model with {found.questions} questions: "
        f"the difference is {points} {proof}.{tail}"
    )


def _chinese(found: Comparison, name: str) -> str:
    who = "微调模型" if name == "tuned" else f"模型 {name} "
    points = f"{100 * abs(found.difference):.1f} 个百分点（95% 区间 {100 * found.low:+.1f} 至 {100 * found.high:+.1f}）"
    test = "精确 McNemar 检验" if _test(found) == "exact McNemar" else "置换检验"
    proof = f"{found.questions} 道配对题目，{test} {p_text(found.p_value)}"
    word = conclusion(found, found.p_value)
    if word != "unclear":
        return f"{who}比基础模型{'好' if word == 'better' else '差'} {points}；{proof}。"
    more = _more(found)
    tail = f"要看出 10 个百分点的差异，还需要约 {more} 道题。" if more else ""
    return f"用 {found.questions} 道题分不出{who}与基础模型：差异为 {points}；{proof}。{tail}"


def _test(found: Comparison) -> str:
    is_whole = abs(found.difference * found.questions - (found.only_tuned - found.only_base)) < 1e-6
    return "exact McNemar" if is_whole else "sign-flip permutation test"


def _more(found: Comparison) -> int:
    return max(0, needed_questions(found) - found.questions)


def p_text(value: float) -> str:
    """A p-value as it is written."""
    return "p < 0.0001" if value < 0.0001 else f"p = {value:.4f}"
