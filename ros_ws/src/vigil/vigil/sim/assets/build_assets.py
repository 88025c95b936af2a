"""Make the committed robot model from the full-size one (development tool, not run at set-up).

    python -m venv /tmp/assets && /tmp/assets/bin/pip install mujoco networkx scipy trimesh fast-simplification
    /tmp/assets/bin/python build_assets.py

takes the Franka Panda with a Robotiq 2F-85 of MuJoCo Menagerie from the ``gym-hil`` wheel, merges every link's
visual parts by colour, simplifies them (software rendering pays by the face), replaces collision meshes by small
convex hulls, renames the joints as the FR3's driver does, and writes ``franka_2f85/robot.xml`` and its meshes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path

import fast_simplification
import numpy as np
import trimesh

WHEEL = "gym-hil==0.1.14"
OUT = Path(__file__).parent / "franka_2f85"
COLOURS = {  # our colour -> (rgba, the source's materials that it stands for)
    "shell": ("0.93 0.94 0.95 1", {"white", "off_white"}),
    "joint": ("0.27 0.28 0.30 1", {"dark_grey", "metal", None}),
    "gripper": ("0.20 0.20 0.215 1", {"black"}),
    "steel": ("0.52 0.53 0.55 1", {"gray"}),
}
SMALLEST_PART = 0.03  # [m] diagonal; screws and lamps below this are left out
VISUAL_FACES = {  # budget per body and colour; what is not listed gets DEFAULT_FACES
    ("link0", "shell"): 600,
    ("link1", "shell"): 360,
    ("link2", "shell"): 360,
    ("link3", "shell"): 380,
    ("link4", "shell"): 380,
    ("link5", "shell"): 440,
    ("link6", "shell"): 460,
    ("link7", "shell"): 220,
    ("link7", "joint"): 240,
    ("base", "gripper"): 420,
}
CONVEX = {
    ("base_mount", "gripper"),
    ("pad", "joint"),
    ("silicone_pad", "gripper"),
}  # their hull looks the same
WELD = 1.5e-3  # [m] grid on which vertices are joined where finer detail stops the simplification
DEFAULT_FACES = 110
COLLISION_VERTICES = 24
JOINTS = {f"joint{i}": f"fr3_joint{i}" for i in range(1, 8)}


def load_part(path: Path, scale: float) -> trimesh.Trimesh:
    """One source mesh in metres, vertices welded."""
    mesh = trimesh.load(path, force="mesh", process=True)
    mesh.merge_vertices(merge_norm=True, merge_tex=True)
    return trimesh.Trimesh(mesh.vertices * scale, mesh.faces)


def decimate(mesh: trimesh.Trimesh, faces: int) -> trimesh.Trimesh:
    """Quadric simplification towards ``faces`` faces; stops earlier where it would break the surface."""
    if len(mesh.faces) <= faces:
        return mesh
    points, triangles = fast_simplification.simplify(mesh.vertices, mesh.faces, target_count=faces, agg=4)
    return trimesh.Trimesh(points, triangles)


def simplify(parts: list[trimesh.Trimesh], faces: int) -> trimesh.Trimesh:
    """The parts as one mesh of about ``faces`` faces, without its tiniest pieces."""
    pieces = [
        piece
        for part in parts
        for piece in part.split(only_watertight=False)
        if np.linalg.norm(piece.extents) > SMALLEST_PART
    ]
    merged = decimate(trimesh.util.concatenate(pieces), faces)
    if len(merged.faces) > 1.3 * faces:
        merged.vertices = np.round(merged.vertices / WELD) * WELD
        merged.merge_vertices()
        merged.update_faces(merged.nondegenerate_faces() & merged.unique_faces())
        merged = decimate(merged, faces)
    merged.merge_vertices()
    merged.update_faces(merged.nondegenerate_faces())
    merged.remove_unreferenced_vertices()
    return merged


def small_hull(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """A convex hull of at most COLLISION_VERTICES vertices: farthest-point sample of the full hull."""
    points = np.asarray(mesh.convex_hull.vertices)
    chosen = [int(np.argmax(points[:, 2]))]
    distance = np.full(len(points), np.inf)
    while len(chosen) < min(COLLISION_VERTICES, len(points)):
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
        chosen.append(int(np.argmax(distance)))
    return trimesh.Trimesh(points[chosen]).convex_hull


def colour_of(material: str | None) -> str | None:
    """Our colour for a source material; None for indicator lamps, which are left out."""
    return next((name for name, (_, materials) in COLOURS.items() if material in materials), None)


def rewrite_geoms(
    body: ET.Element, meshes: dict[str, trimesh.Trimesh], sources: dict[str, trimesh.Trimesh]
) -> int:
    """Replace the geoms of ``body`` by simplified ones; returns the number of visual faces."""
    name, total = body.get("name").removeprefix("left_").removeprefix("right_"), 0
    groups: dict[str, list[trimesh.Trimesh]] = {}
    for geom in list(body.findall("geom")):
        kind = geom.get("class")
        if kind.startswith("pad_box"):
            continue  # the pads' collision boxes stay as they are
        body.remove(geom)
        source = sources[geom.get("mesh")]
        if kind.endswith("visual"):
            colour = colour_of(geom.get("material"))
            if colour:
                groups.setdefault(colour, []).append(source)
        else:
            hull = f"{geom.get('mesh')}_hull"
            meshes[hull] = small_hull(source)
            ET.SubElement(body, "geom", mesh=hull, **{"class": "collision"})
    for colour, parts in groups.items():
        mesh = f"{name}_{colour}"
        if mesh not in meshes:
            if (name, colour) in CONVEX:
                meshes[mesh] = small_hull(trimesh.util.concatenate(parts))
            else:
                meshes[mesh] = simplify(parts, VISUAL_FACES.get((name, colour), DEFAULT_FACES))
        total += len(meshes[mesh].faces)
        ET.SubElement(body, "geom", mesh=mesh, material=colour, **{"class": "visual"})
    for child in body.findall("body"):
        total += rewrite_geoms(child, meshes, sources)
    return total


def convert(source: Path) -> None:
    """Write OUT from the unpacked ``assets`` folder of the wheel."""
    tree = ET.parse(source / "panda.xml")
    root = tree.getroot()
    asset = root.find("asset")
    sources = {}
    for mesh in asset.findall("mesh"):
        path = source / mesh.get("file")
        sources[mesh.get("name") or path.stem] = load_part(
            path, 0.001 if "robotiq" in mesh.get("file") else 1.0
        )
    root.remove(asset)
    for tag in ("actuator", "sensor"):
        root.remove(root.find(tag))
    meshes: dict[str, trimesh.Trimesh] = {}
    link0 = root.find("worldbody/body[@name='link0']")
    faces = rewrite_geoms(link0, meshes, sources)

    for element in root.iter():
        for key in ("name", "joint1", "joint2", "joint"):
            if element.tag != "site" and element.get(key) in JOINTS:
                element.set(key, JOINTS[element.get(key)])
    parents = {child: parent for parent in root.iter() for child in parent}
    for element in [e for e in root.iter() if e.tag in ("site", "camera") and e.get("name") != "pinch"]:
        parents[element].remove(element)

    defaults = root.find("default")
    for parent in list(defaults.iter("default")):
        for child in parent.findall("default"):
            if child.get("class", "").endswith(("/visual", "/collision")):
                for pad in child.findall("default"):
                    parent.append(pad)
                parent.remove(child)
        for tag in ("mesh", "general", "site"):
            for child in parent.findall(tag):
                parent.remove(child)
    visual = ET.SubElement(defaults, "default", {"class": "visual"})
    ET.SubElement(visual, "geom", type="mesh", contype="0", conaffinity="0", group="2", mass="0")
    collision = ET.SubElement(defaults, "default", {"class": "collision"})
    ET.SubElement(collision, "geom", type="mesh", contype="1", conaffinity="2", group="3", mass="0")
    for pad in defaults.iter("default"):
        if pad.get("class", "").startswith("pad_box"):
            pad.find("geom").attrib.update(contype="1", conaffinity="2", group="3")

    root.set("model", "franka_2f85")
    root.find("compiler").set("meshdir", ".")
    asset = ET.Element("asset")
    for name, (rgba, _) in COLOURS.items():
        ET.SubElement(asset, "material", name=name, rgba=rgba, specular="0.2", shininess="0.3")
    for name in sorted(meshes):
        ET.SubElement(asset, "mesh", name=name, file=f"{name}.stl")
    root.insert(list(root).index(root.find("worldbody")), asset)

    OUT.mkdir(exist_ok=True)
    for old in OUT.glob("*.stl"):
        old.unlink()
    for name, mesh in meshes.items():
        mesh.export(OUT / f"{name}.stl")
    ET.indent(tree, "  ")
    tree.write(OUT / "robot.xml", encoding="unicode")
    size = sum(p.stat().st_size for p in OUT.iterdir())
    print(f"{len(meshes)} meshes, {faces} visual faces per frame, {size / 1e6:.2f} MB in {OUT}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, help="unpacked `gym_hil/assets`; downloaded when left out")
    source = parser.parse_args().source
    if source:
        convert(source)
        return
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", folder, WHEEL]
        subprocess.run(pip, check=True)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            wheel.extractall(folder)
        convert(Path(folder) / "gym_hil" / "assets")


if __name__ == "__main__":
    main()
