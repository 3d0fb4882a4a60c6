"""`finetune` and `predict`: what a pretrained model is for."""

from __future__ import annotations

import argparse
import json
import logging


def run_finetune(args: argparse.Namespace, _: list[str]) -> int:
    """Fine-tune a pretrained model on a labelled task."""
    from electra_dist.finetune.config import FinetuneConfig, parse_seeds
    from electra_dist.finetune.results import print_result
    from electra_dist.finetune.train import finetune
    from electra_dist.train.export import model_folder

    words = dict(vars(args))
    words |= {"model": model_folder(args.model), "seeds": parse_seeds(args.seeds)}
    logging.basicConfig(format="%(message)s")
    logging.getLogger("electra_dist").setLevel(logging.INFO)  # a line a seed: seeds take minutes
    print_result(finetune(FinetuneConfig(**words)))
    return 0


def run_predict(args: argparse.Namespace, _: list[str]) -> int:
    """Label texts with a fine-tuned model, as JSONL."""
    from electra_dist.serve.predict import predict_file

    rows = predict_file(args.model, args.input, args.out, device=args.device)
    if args.out is None:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
    return 0
