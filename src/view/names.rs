//! Names of images as paths: a name's slashes make directories.
//!
//! Each reference is listed at its familiar name. Where that path is also a registry's directory — the image
//! `host:5000` beside `host:5000/app:1` — the directory keeps it, and the image is listed at its full name,
//! `docker.io/library/host:5000`. Other spellings of a listed name (without `:latest`, with `docker.io/library/`) are
//! not listed, but lead to it as symbolic links.

use std::collections::BTreeMap;

use crate::digest::ImageId;
use crate::name::Name;
use crate::reference::{DEFAULT_FOLDER, DEFAULT_REGISTRY, Reference, Version};
use crate::store::Catalogue;

/// The components of a path in a folder of names.
pub(super) type Path = Vec<Name>;

/// Images by the paths at which they are listed.
#[derive(Debug, Default)]
pub(super) struct NameTree {
    leaves: BTreeMap<Path, ImageId>,
    /// Where each reference is listed.
    places: BTreeMap<Reference, Path>,
}

/// What a path in a folder of names stands for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// An image, listed here.
    Image(ImageId),
    /// A directory, listed or not.
    Directory,
    /// Another spelling of the name that is listed at this path.
    Alias(Path),
}

fn path_of(name: &str) -> Path {
    name.split('/').map(|part| Name::escaped(part.as_bytes())).collect()
}

impl NameTree {
    /// The images by tag.
    pub(super) fn tags(catalogue: &Catalogue) -> Self {
        Self::of(catalogue, |reference| matches!(reference.version(), Version::Tag(_)))
    }

    /// The images by repository and digest.
    pub(super) fn digests(catalogue: &Catalogue) -> Self {
        Self::of(catalogue, |reference| matches!(reference.version(), Version::Digest(_)))
    }

    /// Every image by its tags, or by its ID where it has none.
    pub(super) fn merged(catalogue: &Catalogue) -> Self {
        let mut tree = Self::tags(catalogue);
        let tagged: std::collections::BTreeSet<ImageId> = tree.leaves.values().copied().collect();
        for id in catalogue.images.keys().filter(|id| !tagged.contains(id)) {
            tree.leaves.insert(vec![Name::escaped(id.hex().as_bytes())], *id);
        }
        tree
    }

    fn of(catalogue: &Catalogue, wanted: impl Fn(&Reference) -> bool) -> Self {
        let references: Vec<_> = catalogue.references.iter().filter(|(reference, _)| wanted(reference)).collect();
        let mut tree = Self::default();
        for (reference, id) in &references {
            tree.leaves.insert(path_of(&reference.to_string()), **id);
        }
        for (reference, id) in references {
            let mut place = path_of(&reference.to_string());
            if tree.is_directory(&place) {
                tree.leaves.remove(&place);
                place = path_of(&reference.full());
                tree.leaves.insert(place.clone(), *id);
            }
            tree.places.insert(reference.clone(), place);
        }
        tree
    }

    /// Whether listed paths lead through this one.
    pub(super) fn is_directory(&self, path: &[Name]) -> bool {
        let behind = (std::ops::Bound::Excluded(path.to_vec()), std::ops::Bound::Unbounded);
        self.leaves.range(behind).next().is_some_and(|(next, _)| next.starts_with(path))
    }

    /// The listed names in a directory: each an image's or another directory's.
    pub(super) fn list(&self, dir: &[Name]) -> Vec<(Name, Option<ImageId>)> {
        let mut names: Vec<(Name, Option<ImageId>)> = Vec::new();
        for (path, id) in self.leaves.range(dir.to_vec()..).take_while(|(path, _)| path.starts_with(dir)) {
            let Some(name) = path.get(dir.len()) else { continue };
            let is_leaf = path.len() == dir.len().saturating_add(1);
            if names.last().is_none_or(|(last, _)| last != name) {
                names.push((name.clone(), is_leaf.then_some(*id)));
            }
        }
        names
    }

    /// What a path stands for, also one that is not listed.
    pub(super) fn find(&self, path: &[Name]) -> Option<Found> {
        if let Some(id) = self.leaves.get(path) {
            return Some(Found::Image(*id));
        }
        if self.is_directory(path) {
            return Some(Found::Directory);
        }
        let typed = path.iter().map(|name| String::from_utf8_lossy(name.as_bytes())).collect::<Vec<_>>().join("/");
        if let Some(place) = Reference::parse(&typed).ok().and_then(|reference| self.places.get(&reference)) {
            return Some(Found::Alias(place.clone()));
        }
        let is_alias = match typed.strip_prefix(DEFAULT_REGISTRY) {
            Some("") => true,
            Some(rest) => rest
                .strip_prefix('/')
                .is_some_and(|rest| rest == DEFAULT_FOLDER || (!rest.is_empty() && self.is_directory(&path_of(rest)))),
            None => typed == DEFAULT_FOLDER,
        };
        (is_alias && !self.places.is_empty()).then_some(Found::Directory)
    }

    /// The first path at which an image is listed.
    pub(super) fn place_of(&self, id: &ImageId) -> Option<&Path> {
        self.leaves.iter().find(|(_, leaf)| *leaf == id).map(|(path, _)| path)
    }
}

/// A link's target from a directory of a folder of names to a path of the same folder.
pub(super) fn target(from: &[Name], to: &[Name]) -> Vec<u8> {
    let up = from.iter().map(|_| &b".."[..]);
    up.chain(to.iter().map(Name::as_bytes)).collect::<Vec<_>>().join(&b'/')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(digit: &str) -> ImageId {
        ImageId::from_hex(&digit.repeat(64)).unwrap()
    }

    fn tree(names: &[(&str, &str)]) -> NameTree {
        let references = names.iter().map(|(name, digit)| (Reference::parse(name).unwrap(), id(digit)));
        NameTree::tags(&Catalogue { references: references.collect(), ..Catalogue::default() })
    }

    fn listing(tree: &NameTree, dir: &str) -> Vec<String> {
        let dir = if dir.is_empty() { Vec::new() } else { path_of(dir) };
        let shown = |(name, id): (Name, Option<ImageId>)| {
            format!("{}{}", String::from_utf8_lossy(name.as_bytes()), if id.is_some() { "" } else { "/" })
        };
        tree.list(&dir).into_iter().map(shown).collect()
    }

    #[test]
    fn slashes_make_directories() {
        let tree = tree(&[("ubuntu:22.04", "1"), ("grafana/grafana:9.0", "2"), ("reg.example:5000/team/app:2", "3")]);
        assert_eq!(listing(&tree, ""), ["grafana/", "reg.example:5000/", "ubuntu:22.04"]);
        assert_eq!(listing(&tree, "grafana"), ["grafana:9.0"]);
        assert_eq!(listing(&tree, "reg.example:5000"), ["team/"]);
        assert_eq!(tree.find(&path_of("reg.example:5000/team/app:2")), Some(Found::Image(id("3"))));
        assert_eq!(tree.find(&path_of("reg.example:5000/team")), Some(Found::Directory));
        assert_eq!(tree.find(&path_of("nothing")), None);
    }

    #[test]
    fn other_spellings_lead_to_the_listed_name() {
        let tree = tree(&[("ubuntu", "1"), ("a/b:2", "2")]);
        for (typed, listed) in [
            ("ubuntu", "ubuntu:latest"),
            ("library/ubuntu", "ubuntu:latest"),
            ("docker.io/library/ubuntu:latest", "ubuntu:latest"),
            ("docker.io/a/b:2", "a/b:2"),
        ] {
            assert_eq!(tree.find(&path_of(typed)), Some(Found::Alias(path_of(listed))), "{typed}");
        }
        for directory in ["docker.io", "docker.io/library", "library", "docker.io/a", "a"] {
            assert_eq!(tree.find(&path_of(directory)), Some(Found::Directory), "{directory}");
        }
        for none in ["docker.io/x", "debian", "ubuntu:22", "a/b", "docker.iox"] {
            assert_eq!(tree.find(&path_of(none)), None, "{none}");
        }
        let from = path_of("docker.io/library");
        assert_eq!(target(&from, &path_of("ubuntu:latest")), b"../../ubuntu:latest");
        assert_eq!(target(&[], &path_of("a/b:2")), b"a/b:2");
    }

    #[test]
    fn an_image_named_as_a_registry_is_listed_at_its_full_name() {
        let tree = tree(&[("host:5000", "1"), ("host:5000/app:1", "2"), ("host:5001", "3")]);
        assert_eq!(listing(&tree, ""), ["docker.io/", "host:5000/", "host:5001"]);
        assert_eq!(listing(&tree, "host:5000"), ["app:1"]);
        assert_eq!(tree.find(&path_of("docker.io/library/host:5000")), Some(Found::Image(id("1"))));
        assert_eq!(
            tree.find(&path_of("library/host:5000")),
            Some(Found::Alias(path_of("docker.io/library/host:5000")))
        );
        assert_eq!(tree.find(&path_of("docker.io/library/host:5001")), Some(Found::Alias(path_of("host:5001"))));
    }
}
