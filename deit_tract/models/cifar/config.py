"""timm's default_cfg for the CIFAR models."""


def cifar_cfg(first: str, classifier: str, fixed_size: bool = False) -> dict:
    shape = {"num_classes": 10, "input_size": (3, 32, 32), "fixed_input_size": fixed_size}
    return shape | {"first_conv": first, "classifier": classifier}
