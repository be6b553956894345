"""The classes file: names, colours, void, and what is said when it makes no sense."""

import pytest

from fcn_jax.data.classes import Classes, label_of_values, read_classes, read_colors
from fcn_jax.errors import DataError


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_names_with_spaces_comments_and_blank_lines(tmp_path):
    path = write(tmp_path / "classes.txt", "\ufeffbackground\n\n# a comment\ntraffic light # red\ncar\n")
    assert read_classes(path) == Classes(("background", "traffic light", "car"), None)


def test_names_with_colours(tmp_path):
    classes = read_classes(write(tmp_path / "classes.txt", "background 0 0 0\nlane 2 255 0 128\n"))
    assert classes == Classes(("background", "lane 2"), ((0, 0, 0), (255, 0, 128)))
    assert classes.info("mine").palette == ((0, 0, 0), (255, 0, 128))


def test_json_lists_and_mappings(tmp_path):
    assert read_classes(write(tmp_path / "a.json", '["sky", "sea"]')) == Classes(("sky", "sea"), None)
    mapping = read_classes(write(tmp_path / "b.json", '{"sky": [1, 2, 3], "sea": [4, 5, 6]}'))
    assert mapping == Classes(("sky", "sea"), ((1, 2, 3), (4, 5, 6)))


def test_void_lines_are_no_class_and_the_rest_moves_up(tmp_path):
    classes = read_classes(write(tmp_path / "classes.txt", "Void\nsky\nsea\n"))
    info = classes.info("mine")
    assert classes.labels == (255, 0, 1) and info.class_names == ("sky", "sea") and info.num_classes == 2
    assert label_of_values(classes)[[0, 1, 2, 3, 254, 255]].tolist() == [255, 0, 1, -1, -1, 255]


def test_without_colours_the_palette_is_vocs(tmp_path):
    info = read_classes(write(tmp_path / "classes.txt", "a\nb\nc\n")).info("mine")
    assert info.palette == ((0, 0, 0), (128, 0, 0), (0, 128, 0))


@pytest.mark.parametrize("text", ["1 2 3\n4 5 6\n", "b 4 5 6\na 1 2 3\n"])
def test_colours_from_a_file_of_their_own(tmp_path, text):
    classes = read_colors(write(tmp_path / "colors.txt", text), Classes(("a", "b"), None))
    assert classes.colors == ((1, 2, 3), (4, 5, 6))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n# nothing\n", "names no class"),
        ("void\n", "names no class"),
        ("a\nb\na\n", "a stands there twice"),
        ("a 1 2 3\nb 1 2 3\n", r"\(1, 2, 3\) stands there twice"),
        ("a 1 2 3\nb\n", "b without a colour"),
        ("a 1 2 300\n", "'a 1 2 300': red, green and blue are 0…255"),
        ("\n".join(f"c{i}" for i in range(256)), "256 lines, but labels are 0…254"),
    ],
)
def test_text_that_makes_no_sense(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_classes(write(tmp_path / "classes.txt", text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('["a",', "not valid JSON"),
        ("3", "must be a list of names"),
        ('{"a": [1, 2]}', "is no colour"),
        ('{"a": [1, 2, "x"]}', "is no colour"),
    ],
)
def test_json_that_makes_no_sense(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_classes(write(tmp_path / "classes.json", text))


@pytest.mark.parametrize(
    ("text", "message"),
    [("1 2 3\n", "no colour for a, b"), ("a 1 2 3\n", "no colour for b"), ("a 1 2\n", "is no colour")],
)
def test_colour_files_that_do_not_fit(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_colors(write(tmp_path / "colors.txt", text), Classes(("a", "b"), None))
