"""An nn.GRU over tokens: it learns a line of text, and the server spells it letter by letter.

python speller.py train     # trains the network and writes models/speller/1
lstmserve serve             # in a second terminal
python speller.py stream    # spells the line from its first letter
"""

import sys

import torch
from torch import nn

from lstmserve import Client

TEXT = "the server remembers where in the line it is. "
LETTERS = sorted(set(TEXT))


class Speller(nn.Module):
    """Tokens [B, T] -> logits of the next one [B, T, letters]."""

    def __init__(self, letters: int = len(LETTERS)) -> None:
        super().__init__()
        self.embed = nn.Embedding(letters, 12)
        self.gru = nn.GRU(12, 48, batch_first=True)
        self.head = nn.Linear(48, letters)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        out, _ = self.gru(self.embed(tokens))
        return self.head(out)


def train() -> None:
    from lstmserve_export import export

    torch.manual_seed(0)
    tokens = torch.tensor([[LETTERS.index(letter) for letter in TEXT]])
    net = Speller()
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(80):
        logits = net(tokens[:, :-1])
        loss = nn.functional.cross_entropy(logits[0], tokens[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"loss {loss.item():.3f}")
    torch.save(net.state_dict(), "speller.pt")
    export(net, example=tokens, name="speller")


def stream(target: str = "127.0.0.1:50051") -> None:
    text = TEXT[0]
    with Client(target) as client, client.session("speller") as session:
        while len(text) < len(TEXT):
            logits = session.step(LETTERS.index(text[-1]))  # one integer -> [letters]
            text += LETTERS[int(logits.argmax())]
    print(text)


if __name__ == "__main__":
    {"train": train, "stream": stream}[sys.argv[1]](*sys.argv[2:])
