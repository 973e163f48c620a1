"""Lists written as text, so that a thousand words and wordings stay readable."""


def terms(text: str) -> list[str]:
    """Words apart by white space."""
    return text.split()


def phrases(text: str) -> list[str]:
    """Phrases apart by bars or line ends."""
    return text.replace("\n", "|").split("|")
