"""Pseudo-labels with few classes: ImageNet's thousand in groups that have many pictures each.

The groups are ours, by hand: animals by kind, things by what they are to a picture of a street or a room. ImageNet's
order keeps animals, food and landscapes together, so that most groups are ranges of class indices.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import schema
from pipelines.codecs import decode_label, encode_label
from pipelines.labels import LabelSpace, with_background
from pipelines.tables import Dataset, write_shard

NUM_CLASSES = 1000
REST = "thing"
"""What is in no other group."""
GROUPS = {
    "fish": "0-6 389-397",
    "bird": "7-24 80-100 127-146",
    "reptile": "25-68",
    "invertebrate": "69-79 107-126 327-329",
    "insect": "300-326",
    "dog": "151-280",
    "cat": "281-293",
    "primate": "365-384",
    "hoofed animal": "339-355 385-386",
    "mammal": "101-106 147-150 294-299 330-338 356-364 387-388",
    "car": (
        "407-408 436 468 475 479 511 555 569 573 575 581 586 609 627 654 656 661 675 717 734 751 757 779 803 817 847 "
        "864 867 874"
    ),
    "cycle": "444 665 670 671 870 880",
    "vehicle": (
        "404-405 417 428 450 466 537 547 561 565 595 603 612 621 690 701 705 730 791 802 812 820 829 856 866 895"
    ),
    "boat": "403 472 484 510 554 576 625 628 724 780 814 833 871 913-914",
    "building": (
        "406 410 415 421 424-425 437 442 449 454 460 467 483 489 497-498 500 509 525 536 538 540 562 580 582 624 634 "
        "646 649 660 663 668 682 698 706 716 718 727 743 755 762 788 819 821 825 832 839 853 858 860 863 865 873 884 "
        "888 900 912 915"
    ),
    "street furniture": "557 571 637 640 645 703-704 707 733 877 919-920",
    "clothing": (
        "399-400 411 433 439 443 445 451-452 457 459 461 465 474 490 501-502 514-515 518 524 529 552 560 568 578 601 "
        "608 610 614-615 617 630 638-639 643 652 655 658 667 678-679 689 697 715 735 770 774-775 793 796 806 808 824 "
        "834 836-837 841-842 869 887 903 906"
    ),
    "furniture": "423 431 453 492-493 495 516 520 526 532 548 553 559 564 598 648 736 750 765 831 846 857 861 894",
    "musical instrument": (
        "401-402 420 432 486 494 513 541 546 558 566 577 579 593-594 641-642 683-684 687 699 776 822 875 881 889"
    ),
    "appliance": (
        "480 482 485 487 508 521 527-528 534 545 550 589-590 592 605-606 613 620 632 650-651 662 664 673 681 688 "
        "713 732 740 742 745 754 759-761 782 786 811 827 848 851 859 878 882 886 891 897"
    ),
    "food": "924-957 959-969",
    "landscape": "970 972-980",
    "person": "981-983",
    "plant": "958 984-998",
}
"""Name -> class indices, single ones and ranges."""


def coarse_space() -> LabelSpace:
    """The groups, then background."""
    return with_background((*GROUPS, REST))


def coarse_of_class() -> NDArray[np.intp]:
    """(1001,) the group of each class, and background for background.

    Raises:
        ValueError: a class is in two groups.
    """
    space = coarse_space()
    table = np.full(NUM_CLASSES + 1, space.names.index(REST))
    for group, text in enumerate(GROUPS.values()):
        for index in _indices(text):
            if table[index] != space.names.index(REST):
                raise ValueError(f"class {index} is in the groups {space.names[table[index]]} and {space.names[group]}")
            table[index] = group
    table[NUM_CLASSES] = space.background
    return table


def _indices(text: str) -> Iterator[int]:
    for part in text.split():
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def write_coarse_labels(dataset: str, fine: str, *, labels: str) -> dict[str, Any]:
    """Write a label set with the groups in the place of the classes of another one; shards that are there stay.

    Args:
        dataset: folder of the dataset.
        fine: the label set with ImageNet's classes and background.
        labels: the name of the new one.

    Returns:
        `groups`: how many classes the new labels have, background not counted.
    """
    opened, space, table = Dataset.open(dataset), coarse_space(), coarse_of_class()
    source = opened.labels(fine)
    target = opened.create_labels(labels, label_space=space, plan={"kind": "coarse", "of": fine, "groups": GROUPS})
    lookup = np.full(source.label_space.void + 1, space.void, space.dtype)
    lookup[: len(table)] = table
    for file in source.files():
        if file.key in target.committed():
            continue
        rows = source.read(file.key).to_pylist()
        columns = {
            "id": [row["id"] for row in rows],
            "label": [row["label"] and encode_label(lookup[decode_label(row["label"])]) for row in rows],
            "reason": [row["reason"] for row in rows],
        }
        target.commit([write_shard(target.uri, file.key, schema.shard_rows(columns, columns_of=schema.LABELS))])
    return {"groups": space.num_classes - 1}
