import torch
import torch.nn as nn

from .modules import Encoder, TokenPredictor


class BidirectionalTransformer(nn.Module):
    def __init__(self, configs):
        super().__init__()
        tokens, codes, dim = configs["num_image_tokens"], configs["num_codebook_vectors"] + 1, configs["dim"]
        self.tok_emb = nn.Embedding(codes, dim)
        self.pos_emb = nn.Parameter(nn.init.trunc_normal_(torch.zeros(tokens, dim), 0.0, 0.02))
        self.blocks = nn.Sequential(*[Encoder(dim, configs["hidden_dim"]) for _ in range(configs["n_layers"])])
        self.Token_Prediction = TokenPredictor(dim)
        self.LN = nn.LayerNorm(dim, eps=1e-12)
        self.drop = nn.Dropout(0.1)
        self.bias = nn.Parameter(torch.zeros(tokens, codes))

    def forward(self, x):
        embedded = self.drop(self.LN(self.tok_emb(x) + self.pos_emb))
        predicted = self.Token_Prediction(self.blocks(embedded))
        return predicted @ self.tok_emb.weight.T + self.bias
