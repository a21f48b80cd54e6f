"""The floor: the same number of SGD steps on batches of 10, by torch alone, with no clients at all.

python central.py DATA.npz MODEL ROUNDS
"""

import sys

import torch
from model import LR, load, make_model

x, y, test_x, test_y = load(sys.argv[1])
model, rounds = make_model(sys.argv[2]), int(sys.argv[3])
torch.manual_seed(0)
optimizer = torch.optim.SGD(model.parameters(), lr=LR)
for _ in range(rounds):
    for rows in torch.randint(len(x), (250, 10)):  # 50 clients of 5 batches each
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
with torch.no_grad():
    print("accuracy", (model(test_x).argmax(1) == test_y).double().mean().item())
