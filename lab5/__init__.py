"""lab5: teach, train and measure MaskGIT image inpainting.

Read the modules in the order of their rooms: gamma, attention, transformer, vqgan, then decoder.
Each one says at its top what it does and what it does not know.
"""

__version__ = "0.1.0"
