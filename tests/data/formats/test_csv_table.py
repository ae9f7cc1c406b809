"""Tables of boxes: columns by many names, without header, as VIA and AutoML write them, and damaged ones."""

import numpy as np
import pytest
from PIL import Image

from detect.data.read import read, splits
from detect.errors import UserError

BOX = [4.0, 5.0, 24.0, 20.0]
"""The box that all layouts below describe, in an image of 40 × 30 pixels."""


def images(root, *names):
    for name in names or ("a.jpg",):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(root / name)


def boxes(root, text, split="train", name="labels.csv", encoding="utf-8", **options):
    """Write a table beside an image and return the boxes that are read."""
    images(root)
    (root / name).write_text(text, encoding=encoding)
    dataset = read(root, split, **options)
    assert dataset.format == "csv"
    return [
        (dataset.classes[label], box.tolist())
        for record in dataset.records
        for label, box in zip(record.labels, record.boxes, strict=True)
    ]


@pytest.mark.parametrize(
    "text",
    [
        "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,40,30,cat,4,5,24,20\n",
        "filename;width;height;class;xmin;ymin;xmax;ymax\na.jpg;40;30;cat;4,0;5,0;24,0;20,0\n",
        "image_id\tlabel\tx1\ty1\tx2\ty2\na\tcat\t4\t5\t24\t20\n",
        "class_name,class_id,Image,left,top,right,bottom\ncat,3,a.jpg,4,5,24,20\n",
        "frame,xmin,xmax,ymin,ymax,class\na.jpg,4,24,5,20,cat\n",
        "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\na.jpg;40;30;4;5;24;20;cat\n",
        "IMG_NAME,Category,X,Y,W,H\r\na.jpg,cat,4,5,20,15\r\n",
        "path,name,x_min,y_min,width,height\na.jpg,cat,4,5,20,15\n",
        "label_name,bbox_x,bbox_y,bbox_width,bbox_height,image_name,image_width,image_height\ncat,4,5,20,15,a.jpg,40,30\n",
        "file,label,x_center,y_center,width,height\na.jpg,cat,14,12.5,20,15\n",
        "filename,width,height,class,x,y,w,h\na.jpg,40,30,cat,4,5,20,15\n",
        "filename,x,y,width,height,class,w,h\na.jpg,4,5,20,15,cat,40,30\n",
        "file,label,cx,cy,w,h,width,height\na.jpg,cat,14,12.5,20,15,40,30\n",
        'image_id,width,height,bbox,label\na,40,30,"[4.0, 5.0, 20.0, 15.0]",cat\n',
        "file_name,label,xmin,ymin,xmax,ymax\na.jpg,cat,0.1,0.16666667,0.6,0.66666667\n",
        "a.jpg,4,5,24,20,cat\n",
        "./a.jpg,4,5,24,20,cat,40,30\n",
        "cat,4,5,20,15,a.jpg,40,30\n",
        "gs://bucket/folder/a.jpg,cat,0.1,0.16666667,,,0.6,0.66666667,,\n",
        "TRAIN,gs://bucket/a.jpg,cat,0.1,0.16666667,0.6,0.16666667,0.6,0.66666667,0.1,0.66666667\n",
        "C:\\data\\a.JPG,4,5,24,20,cat\n",
    ],
)  # fmt: skip
def test_the_same_box_in_many_layouts(tmp_path, text):
    ((name, box),) = boxes(tmp_path, text)
    assert name == "cat"
    np.testing.assert_allclose(box, BOX, atol=1e-5)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_encodings_with_a_byte_order_mark(tmp_path, encoding):
    text = "filename,class,xmin,ymin,xmax,ymax\na.jpg,猫,4,5,24,20\n"
    assert boxes(tmp_path, text, encoding=encoding) == [("猫", BOX)]


def test_a_table_without_classes_has_one(tmp_path):
    text = 'image_id,width,height,bbox,source\na,40,30,"[4, 5, 20, 15]",usask_1\n'
    assert boxes(tmp_path, text) == [("object", BOX)]


def test_rows_without_box_are_images_without_objects(tmp_path):
    images(tmp_path, "a.jpg", "b.jpg", "c.jpg", "d.jpg")
    text = "filename,class,xmin,ymin,xmax,ymax\na.jpg,cat,4,5,24,20\nb.jpg,,,,,\nc.jpg,No finding,,,,\n"
    text += "d.jpg,nan,NaN,nan,nan,nan\n"
    (tmp_path / "labels.csv").write_text(text)
    dataset = read(tmp_path, "train")
    assert [len(record.boxes) for record in dataset.records] == [1, 0, 0, 0] and dataset.classes == ("cat",)


def test_keras_retinanet(tmp_path):
    images(tmp_path, "a.jpg", "imgs/b.jpg")
    (tmp_path / "annotations.csv").write_text("a.jpg,4,5,24,20,dog\nimgs/b.jpg,,,,,\na.jpg,0,0,10,10,cat\n")
    (tmp_path / "classes.csv").write_text("dog,0\ncat,1\nbird,2\n")
    dataset = read(tmp_path, "train")
    assert dataset.classes == ("dog", "cat", "bird") and splits(tmp_path) == ("all",)
    first, second = dataset.records
    assert first.boxes.tolist() == [BOX, [0, 0, 10, 10]] and first.labels.tolist() == [0, 1] and not len(second.boxes)


def test_class_ids_are_named(tmp_path):
    (tmp_path / "class_names.csv").write_text("name,id\ndog,0\ncat,7\n")
    assert boxes(tmp_path, "a.jpg,4,5,24,20,7\n") == [("cat", BOX)]


def test_names_that_are_numbers_are_in_their_order(tmp_path):
    rows = "".join(f"a.jpg,{name},4,5,24,20\n" for name in (10, 2, 0))
    found = boxes(tmp_path, f"filename,class,xmin,ymin,xmax,ymax\n{rows}")
    assert [name for name, _ in found] == ["10", "2", "0"] and read(tmp_path, "train").classes == ("0", "2", "10")


def test_via(tmp_path):
    shapes = [
        '{""name"":""rect"",""x"":4,""y"":5,""width"":20,""height"":15}',
        '{""name"":""polygon"",""all_points_x"":[4,24,10],""all_points_y"":[5,7,20]}',
        '{""name"":""ellipse"",""cx"":14,""cy"":12.5,""rx"":7.5,""ry"":10,""theta"":1.5707963267948966}',
        '{""name"":""circle"",""cx"":14,""cy"":12,""r"":2}',
        '{""name"":""point"",""cx"":14,""cy"":12}',
    ]
    rows = [f'a.jpg,1,"{{}}",5,{k},"{shape}","{{""class"":""cat""}}"' for k, shape in enumerate(shapes)]
    rows.append('b.jpg,1,"{}",0,0,"{}","{}"')
    heading = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"
    images(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "via_project.csv").write_text("\n".join([heading, *rows]))
    dataset = read(tmp_path, "train")
    first, second = dataset.records
    np.testing.assert_allclose(first.boxes, [BOX, BOX, BOX, [12, 10, 16, 14]], atol=1e-5)
    assert not len(second.boxes) and dataset.classes == ("cat",)
    (left,) = dataset.repaired
    assert left.rule == "shape-without-area" and left.detail.startswith("line 6")


@pytest.mark.parametrize(
    ("attributes", "name"),
    [
        ('{""type"":""cat"",""colour"":""red""}', "cat"),
        ('{""animal"":""cat""}', "cat"),
        ('{""type"":{""cat"":true,""dog"":false}}', "cat"),
    ],
)
def test_classes_of_via(tmp_path, attributes, name):
    shape = '{""name"":""rect"",""x"":4,""y"":5,""width"":20,""height"":15}'
    text = f'#filename,region_shape_attributes,region_attributes\na.jpg,"{shape}","{attributes}"\n'
    assert boxes(tmp_path, text) == [(name, BOX)]


HEADER = "filename,class,xmin,ymin,xmax,ymax\n"


def test_one_file_for_each_split(tmp_path):
    images(tmp_path, "images/0.jpg", "images/1.jpg")
    (tmp_path / "train_labels.csv").write_text(HEADER + "0.jpg,dog,4,5,24,20\n")
    (tmp_path / "test_labels.csv").write_text(HEADER + "1.jpg,cat,1,2,3,4\n")
    assert splits(tmp_path) == ("test", "train")
    train, test = read(tmp_path, "train"), read(tmp_path, "test")
    assert train.classes == test.classes == ("cat", "dog")
    assert train.records[0].boxes.tolist() == [BOX] and train.records[0].labels.tolist() == [1]
    assert test.records[0].boxes.tolist() == [[1, 2, 3, 4]]


def test_one_folder_for_each_split(tmp_path):
    """Roboflow: the images of two splits have the same names."""
    for split, box in (("train", "4,5,24,20"), ("valid", "1,2,3,4")):
        images(tmp_path, f"{split}/a.jpg")
        (tmp_path / split / "_annotations.csv").write_text(f"{HEADER}a.jpg,cat,{box}\n")
    assert splits(tmp_path) == ("train", "valid")
    (record,) = read(tmp_path, "val").records
    assert record.path == tmp_path / "valid" / "a.jpg" and record.boxes.tolist() == [[1, 2, 3, 4]]


def test_a_column_of_splits(tmp_path):
    images(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    rows = ["TRAIN,a.jpg,cat,0.1,0.1,,,0.5,0.5,,", "VALIDATION,b.jpg,,,,,,,,,", "UNASSIGNED,c.jpg,,,,,,,,,"]
    (tmp_path / "data.csv").write_text("\n".join(rows))
    assert splits(tmp_path) == ("rest", "train", "validation")
    np.testing.assert_allclose(read(tmp_path, "train").records[0].boxes, [[4, 3, 20, 15]], atol=1e-5)
    assert [record.path.name for record in read(tmp_path, "val").records] == ["b.jpg"]


def test_a_column_that_names_no_splits(tmp_path):
    rows = "".join(f"a.jpg,cat,4,5,24,20,{k}\n" for k in range(30))
    with pytest.raises(
        UserError, match=r"labels\.csv: its column for the split has more than 20 different values; write"
    ):
        boxes(tmp_path, HEADER.strip() + ",set\n" + rows)


def test_the_file_itself(tmp_path):
    images(tmp_path, "images/a.jpg")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "mine.csv").write_text(HEADER + "a.jpg,cat,4,5,24,20\n")
    (tmp_path / "annotations" / "other.csv").write_text(HEADER + "a.jpg,dog,4,5,24,20\n")
    dataset = read(tmp_path / "annotations" / "mine.csv", "train")
    assert dataset.classes == ("cat",) and dataset.records[0].path == tmp_path / "images" / "a.jpg"


def test_a_table_beside_the_files_that_it_was_made_from(tmp_path):
    images(tmp_path)
    (tmp_path / "a.xml").write_text("<annotation><filename>a.jpg</filename></annotation>")
    (tmp_path / "labels.csv").write_text(HEADER + "a.jpg,cat,4,5,24,20\n")
    assert read(tmp_path, "train").format == "voc"
    assert read(tmp_path, "train", format="csv").format == read(tmp_path / "labels.csv", "train").format == "csv"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "a,b,c\n1,2,3\n",
        "image_id,PredictionString\na,1\n",
        "epoch,xmin,ymin,xmax,ymax\n1,2,3,4,5\n",
        "cat,0\n",
    ],
)
def test_other_tables(tmp_path, text):
    images(tmp_path)
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(UserError, match="no data set of a known format"):
        splits(tmp_path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a.jpg,cat,4,5,24\n", r"1 × broken-file, first .*labels\.csv: line 3 has no image, class and box"),
        ("a.jpg\n", "line 3 has no image, class and box"),
        ("a.jpg,cat,4,5,24,x\n", "line 3 has no image, class and box where the first line has them: a"),
        ("a.jpg,cat,4,5,24,\n", "line 3 has no image, class and box"),
        ("a.jpg,,4,5,24,20\n", "line 3 has no image, class and box"),
        (",cat,4,5,24,20\n", "line 3 has no image, class and box"),
        ('a.jpg,"cat,4,5,24,20\na.jpg,cat,4,5,24,20\n', r"broken-file, first .*labels\.csv: line 3: it is not CSV"),
        ('a.jpg,"' + "x" * 200_000 + '",4,5,24,20\n', "line 3: it is not CSV: field larger than field limit"),
        ("a.jpg,cat,4,5,nan,20\n", r"1 × nan-box, first .*labels\.csv: line 3: box"),
        ("a.jpg,cat,4,5,1e999,20\n", "1 × nan-box"),
        ("../../etc/passwd,cat,4,5,24,20\n", "1 × path-outside-root"),
        ("b.jpg,cat,4,5,24,20\n", r"1 × missing-image, first .*b\.jpg: .*its boxes are in .*labels\.csv"),
        ("b\0.jpg,cat,4,5,24,20\n", "1 × path-outside-root"),
    ],
)  # fmt: skip
def test_damaged_rows(tmp_path, rows, message):
    with pytest.raises(UserError, match=message) as error:
        boxes(tmp_path, HEADER + "a.jpg,cat,4,5,24,20\n" + rows)
    assert "\n" not in str(error.value)


def test_text_in_another_encoding(tmp_path):
    with pytest.raises(UserError, match=r"labels\.csv: line 1: it is not UTF-8 .*save it as CSV in UTF-8"):
        boxes(tmp_path, HEADER + "a.jpg,café,4,5,24,20\n", encoding="latin-1")


def test_given_classes(tmp_path):
    text = HEADER + "a.jpg,cat,4,5,24,20\n"
    assert boxes(tmp_path, text, classes=["dog", "cat"]) == [("cat", BOX)]
    with pytest.raises(UserError, match=r"1 × unknown-class, first .*labels\.csv: line 2: cat"):
        boxes(tmp_path, text, classes=["dog"])
