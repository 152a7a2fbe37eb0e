"""Names in a folder of ONNX files, known to who writes it and who reads it."""

ENCODER_FILE = "encoder.onnx"
EXPORT_FILE = "onnx_export.json"


def step_file(direction: str) -> str:
    """The file with one step of the branch `direction`."""
    return f"step_{direction}.onnx"
