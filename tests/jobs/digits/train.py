"""Train a small neural network to read handwritten digits (scikit-learn's own set, 1797 images of 8 x 8 pixels)."""

import numpy as np
import wandb
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

DEFAULTS = {"epochs": 5, "lr": 0.003, "hidden": 32, "batch_size": 64, "seed": 0}


def load(seed):
    images, labels = load_digits(return_X_y=True)
    return train_test_split(images / 16.0, labels, test_size=0.25, random_state=seed, stratify=labels)


def batches(images, labels, size, rng):
    order = rng.permutation(len(images))
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        yield images[chosen], labels[chosen]


def main():
    run = wandb.init(project="digits", config=DEFAULTS)
    config = run.config

    train_images, test_images, train_labels, test_labels = load(config.seed)
    classes = np.unique(train_labels)
    rng = np.random.default_rng(config.seed)
    model = MLPClassifier(
        hidden_layer_sizes=(config.hidden,), learning_rate_init=config.lr, random_state=config.seed
    )
    print(f"{len(train_images)} images to learn from, {len(test_images)} to test on", flush=True)

    best = 0.0
    for epoch in range(1, config.epochs + 1):
        for images, labels in batches(train_images, train_labels, config.batch_size, rng):
            model.partial_fit(images, labels, classes=classes)
        accuracy = model.score(test_images, test_labels)
        best = max(best, accuracy)
        loss = log_loss(train_labels, model.predict_proba(train_images), labels=classes)
        val_loss = log_loss(test_labels, model.predict_proba(test_images), labels=classes)
        run.log({"epoch": epoch, "loss": loss, "val_loss": val_loss, "accuracy": accuracy})
        print(f"epoch {epoch}/{config.epochs}: loss {loss:.4f}, accuracy {accuracy:.4f}", flush=True)

    run.summary["best_accuracy"] = best
    run.finish()


if __name__ == "__main__":
    main()
