"""The side of faiss: IndexFlatIP, exact, at the same k."""

import faiss
import worker


def ranking():
    users, layer = worker.items()
    index = faiss.IndexFlatIP(layer.shape[1])
    index.add(layer)
    return lambda: index.search(users, worker.TOP)


CASES = {"ranking f32": ranking}

if __name__ == "__main__":
    worker.serve(CASES)
