"""How neighbours are weighed when models are averaged over a graph: Metropolis-Hastings weights.

    W_ij = 1 / (1 + max(d_i, d_j))  for neighbours i, j        d: number of neighbours
    W_ii = 1 − Σ_{j ≠ i} W_ij

(Xiao, Boyd and Kim 2007, Distributed average consensus with least-mean-square deviation.)

W is symmetric and doubly stochastic. The rule for W_ij is symmetric in i and j. W_ii makes each row
sum to 1, and by symmetry each column. W_ii >= 0, since the d_i others are at most 1 / (1 + d_i)
each: W_ii >= 1 − d_i / (1 + d_i) = 1 / (1 + d_i) > 0. On a connected graph W is irreducible with a
positive diagonal, hence primitive, and 1 is its only eigenvalue of modulus 1 (Perron-Frobenius):
|λ|, the second-largest modulus, is below 1, and gossip x ← W x nears the mean as |λ|^t.
"""

from __future__ import annotations

import networkx as nx
import numpy as np
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, eigsh

DENSE = 300
"""Up to so many nodes, eigenvalues are those of a dense matrix."""


def metropolis_hastings(graph: nx.Graph, num_clients: int) -> sparse.csr_matrix:
    """Return W over the clients 0..N-1 of a graph, float64 `[N, N]`; self-loops do not count.

    Example:
        >>> metropolis_hastings(nx.path_graph(3), 3).toarray().round(3).tolist()
        [[0.667, 0.333, 0.0], [0.333, 0.333, 0.333], [0.0, 0.333, 0.667]]
    """
    pairs = [(i, j) for i, j in graph.edges if i != j]
    pairs_M2 = np.array(pairs, np.int64).reshape(-1, 2)
    degree_N = np.bincount(pairs_M2.ravel(), minlength=num_clients)
    weight_M = 1.0 / (1 + degree_N[pairs_M2].max(1, initial=0))
    i_M, j_M = pairs_M2.T
    off = sparse.coo_matrix(
        (np.tile(weight_M, 2), (np.concatenate([i_M, j_M]), np.concatenate([j_M, i_M]))),
        shape=(num_clients, num_clients),
    ).tocsr()
    return _closed(off)


def among(weights_NN: sparse.csr_matrix, clients: np.ndarray) -> sparse.csr_matrix:
    """Return the weights of a round in which only some take part, `[S, S]`.

    What a node would give to the absent it gives to itself. With the absent keeping their models
    (rows and columns of the identity), this is again symmetric and doubly stochastic: weights
    between those present are as before, hence symmetric; each diagonal entry is 1 minus the rest of
    its row, and is the old one plus what the absent had, hence positive.

    Args:
        weights_NN: W.
        clients: Who takes part, `[S]`.
    """
    if len(clients) == weights_NN.shape[0]:
        return weights_NN
    part_SS = weights_NN[clients][:, clients]
    return _closed(part_SS - sparse.diags(part_SS.diagonal()))


def second_eigenvalue(weights_NN: sparse.csr_matrix) -> float:
    """Return the second-largest modulus of W's eigenvalues: that of W − 11ᵀ/N, the largest.

    Example:
        >>> round(second_eigenvalue(metropolis_hastings(nx.cycle_graph(4), 4)), 12)
        0.333333333333
    """
    count = weights_NN.shape[0]
    if count < 2:
        return 0.0
    if count <= DENSE:
        return float(np.abs(np.linalg.eigvalsh(weights_NN.toarray() - 1 / count)).max())

    def apply(x_N: np.ndarray) -> np.ndarray:
        product: np.ndarray = weights_NN @ x_N - x_N.mean()
        return product

    operator = LinearOperator((count, count), matvec=apply, dtype=np.float64)
    start_N = np.cos(np.arange(count) ** 2)  # fixed, and along no eigenvector in particular
    return float(np.abs(eigsh(operator, k=1, which="LM", v0=start_N, return_eigenvectors=False)[0]))


def _closed(off_NN: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return weights between different nodes with the diagonal that makes rows sum to 1."""
    rest_N = 1.0 - np.asarray(off_NN.sum(1)).ravel()
    return (off_NN + sparse.diags(rest_N)).tocsr()
