"""Classifier two-sample test (Lopez-Paz & Oquab 2017, arXiv 1610.06545): can rows of two sets be told apart?"""

import numpy as np


def c2st_auc(a: np.ndarray, b: np.ndarray, *, generator: np.random.Generator, folds: int = 3) -> float:
    """Cross-validated area under the ROC curve of boosted trees that tell rows of one set from rows of the other.

    0.5: they cannot. Both sets must be rows of the same kind of sample: if one has other episodes than the other, these are
    what is told apart.

    Args:
        a: (n, d) rows, n at least `folds`.
        b: (m, d) rows, likewise.
        generator: of folds and trees.
        folds: of the cross-validation.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from threadpoolctl import threadpool_limits

    rows, of_b = np.concatenate([a, b]), np.repeat([0, 1], [len(a), len(b)])
    seed = int(generator.integers(2**31))
    trees = HistGradientBoostingClassifier(max_iter=50, max_bins=64, early_stopping=False, random_state=seed)
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    # Trees this small leave threads waiting for one another: on a busy machine that takes many times as long as one thread.
    with threadpool_limits(1):
        found = cross_val_predict(trees, rows, of_b, cv=split, method="predict_proba")[:, 1]
    return float(roc_auc_score(of_b, found))
