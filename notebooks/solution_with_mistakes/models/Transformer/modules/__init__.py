from .layers import Encoder as Encoder
from .layers import TokenPredictor as TokenPredictor
