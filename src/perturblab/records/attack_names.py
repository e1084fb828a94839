"""Names of attacks and of the modes of BatchOut, as records spell them."""

WORST = "worst case"


TRANSFER, FROZEN = "transfer-", " frozen"


BLIND = ("square", "uniform", "gaussian")  # attacks that follow no gradient of the net; nor do transfers


ACTIVE, AT_INFERENCE = "BatchOut active in evaluation", "BatchOut at inference"  # how modes begin, up to a comma


def is_capped(attack: str) -> bool:
    """Say whether a curve's axis is a cap on iterations instead of a radius: DeepFool's, transferred or not.

    Args:
        attack: its name.
    """
    return attack.removeprefix(TRANSFER).startswith("deepfool")
