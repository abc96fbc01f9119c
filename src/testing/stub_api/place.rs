//! What the path of a request names.

use super::{Resource, Verb};
use hyper::Method;

/// A collection, or one object of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) resource: Resource,
    pub(super) namespace: Option<String>,
    /// The object; `None` for the collection.
    pub(super) name: Option<String>,
    /// Its subresource `finalize`.
    pub(super) finalize: bool,
}

impl Place {
    pub(super) fn parse(path: &str) -> Option<Place> {
        Resource::ALL.into_iter().find_map(|resource| {
            let (group, plural) = resource.path().rsplit_once('/')?;
            let words: Vec<&str> = path.strip_prefix(group)?.strip_prefix('/')?.split('/').collect();
            let (namespace, words) = match words[..] {
                ["namespaces", namespace, below, ..] if below == plural => (Some(namespace), &words[2..]),
                _ => (None, &words[..]),
            };
            let (name, finalize) = match words {
                [first, ..] if *first != plural => return None,
                [_] => (None, false),
                [_, name] => (Some(*name), false),
                [_, name, "finalize"] if resource == Resource::Namespaces => (Some(*name), true),
                _ => return None,
            };
            let owned = |text: Option<&str>| text.map(str::to_owned);
            Some(Place { resource, namespace: owned(namespace), name: owned(name), finalize })
        })
    }

    /// What a request with this method does here, if it can be done.
    pub(super) fn verb(&self, method: &Method, watching: bool) -> Option<Verb> {
        match (method.as_str(), &self.name) {
            ("GET", None) if watching => Some(Verb::Watch),
            ("GET", None) => Some(Verb::List),
            ("GET", Some(_)) => Some(Verb::Get),
            ("POST", None) => Some(Verb::Create),
            ("PUT", Some(_)) => Some(Verb::Update),
            ("DELETE", Some(_)) => Some(Verb::Delete),
            ("PATCH", Some(_)) if self.resource == Resource::Nodes => Some(Verb::Patch),
            _ => None,
        }
    }

    /// The name of the object among all of its kind.
    pub(super) fn key(&self) -> String {
        let name = self.name.clone().unwrap_or_default();
        self.namespace.as_ref().map_or(name.clone(), |namespace| format!("{namespace}/{name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &str) -> Option<(Resource, String, bool)> {
        Place::parse(path).map(|place| (place.resource, place.key(), place.finalize))
    }

    #[test]
    fn paths_name_collections_and_objects() {
        let services = |key: &str| Some((Resource::Services, key.to_owned(), false));
        assert_eq!(read("/api/v1/services"), services(""));
        assert_eq!(read("/api/v1/namespaces/shop/services"), services("shop/"));
        assert_eq!(read("/api/v1/namespaces/shop/services/web"), services("shop/web"));
        let slice = Some((Resource::EndpointSlices, "shop/web".to_owned(), false));
        assert_eq!(read("/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices/web"), slice);
        assert_eq!(read("/api/v1/nodes/here"), Some((Resource::Nodes, "here".to_owned(), false)));
        let namespaces = |finalize| Some((Resource::Namespaces, "shop".to_owned(), finalize));
        assert_eq!(read("/api/v1/namespaces/shop"), namespaces(false));
        assert_eq!(read("/api/v1/namespaces/shop/finalize"), namespaces(true));
        assert_eq!(read("/api/v1/namespaces/shop/events"), None);
        assert_eq!(read("/api/v1/nodes/here/status"), None);
        assert_eq!(read("/apis/discovery.k8s.io/v1/services"), None);
    }
}
