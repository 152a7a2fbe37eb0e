"""The demo: draw, photograph or open a formula in the browser, and see what the model saw.

`abm-hf demo` and the Space's `app.py` both start [`abm_hf.demo.app.launch`]. Gradio is needed (`pip install
abm-hf[demo]`) and imported only there.
"""
