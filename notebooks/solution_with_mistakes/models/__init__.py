from .VQGAN_Transformer import MaskGit as MaskGit
