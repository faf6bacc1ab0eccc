"""Where a run file's seed and tokenizer contradict themselves, before any file is looked at."""

from coordinator.sections import Seed, Tokenizer


def seed_problems(seed: Seed, tokenizer: Tokenizer) -> list[str]:
    """One line for each problem, which names the key, the value and what was expected."""
    is_pretrained = seed.kind == "pretrained"
    problems = []
    for key, value, is_needed in (
        ("seed.recipe", seed.recipe, not is_pretrained),
        ("seed.pretrained", seed.pretrained, is_pretrained),
    ):
        if is_needed and value is None:
            problems.append(f"{key}: missing; seed.kind {seed.kind!r} needs it")
        if not is_needed and value is not None:
            problems.append(f"{key}: with seed.kind {seed.kind!r}, which has none")
    return problems + _tokenizer_problems(tokenizer, is_pretrained=is_pretrained)


def _tokenizer_problems(tokenizer: Tokenizer, *, is_pretrained: bool) -> list[str]:
    vocab_size, model = tokenizer.vocab_size, tokenizer.model
    if is_pretrained:
        if vocab_size is None:
            return []
        return [
            f"tokenizer.vocab_size: {vocab_size} with seed.kind 'pretrained', whose vocabulary is "
            "its own: expected model, or nothing for the tokenizer that lies beside the seed"
        ]
    if (vocab_size is None) != (model is None):
        return []
    return [f"tokenizer: vocab_size {vocab_size} and model {model}: expected exactly one of them"]
