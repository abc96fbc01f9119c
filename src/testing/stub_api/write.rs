//! Single objects, read and written from outside.
//!
//! As strict as a real server where a client could go wrong: nothing is made twice or in a namespace
//! that is not there. No namespace controller runs, as in envtest: a namespace that is
//! deleted stays until it is finalized, and what is in it stays, too.

use super::answer::{Answer, full, status};
use super::place::Place;
use super::store::Store;
use super::{Resource, Shared, Verb, key_of, lock, patch};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

/// Does what is asked, with the body of the request.
pub(super) fn answer(shared: &Shared, place: &Place, verb: Verb, body: Value) -> Answer {
    let mut store = lock(&shared.store);
    let answer = match verb {
        Verb::Create => create(&mut store, place, body),
        _ => with_existing(&mut store, place, verb, body),
    };
    shared.version.send_replace(store.version);
    answer.unwrap_or_else(|refused| *refused)
}

type Outcome = Result<Answer, Box<Answer>>;

fn refuse<T>(code: u16, reason: &str, message: &str) -> Result<T, Box<Answer>> {
    Err(Box::new(status(code, reason, message)))
}

fn create(store: &mut Store, place: &Place, mut object: Value) -> Outcome {
    let plural = place.resource.plural();
    if let Some(namespace) = &place.namespace {
        let namespace_object = store.object(Resource::Namespaces, namespace);
        if namespace_object.is_null() {
            return refuse(404, "NotFound", &format!("namespaces \"{namespace}\" not found"));
        }
        if is_terminating(&namespace_object) {
            return refuse(403, "Forbidden", &format!("namespace {namespace} is being terminated"));
        }
        object["metadata"]["namespace"] = namespace.as_str().into();
    }
    let key = key_of(&object);
    if !store.object(place.resource, &key).is_null() {
        return refuse(409, "AlreadyExists", &format!("{plural} \"{key}\" already exists"));
    }
    if place.resource == Resource::Namespaces {
        object["spec"]["finalizers"] = json!(["kubernetes"]);
    }
    let mut answer = put(store, place, key, object);
    *answer.status_mut() = StatusCode::CREATED;
    Ok(answer)
}

/// What needs an object that is there.
fn with_existing(store: &mut Store, place: &Place, verb: Verb, body: Value) -> Outcome {
    let key = place.key();
    let mut object = store.object(place.resource, &key);
    if object.is_null() {
        return refuse(404, "NotFound", &format!("{} \"{key}\" not found", place.resource.plural()));
    }
    match verb {
        Verb::Get => {}
        Verb::Delete if place.resource == Resource::Namespaces => {
            object["metadata"]["deletionTimestamp"] = "2000-01-01T00:00:00Z".into();
            return Ok(put(store, place, key, object));
        }
        Verb::Patch => {
            if let Err(reason) = patch::apply(&mut object, &body) {
                return refuse(422, "Invalid", &reason);
            }
            return Ok(put(store, place, key, object));
        }
        Verb::Update
            if !(place.finalize && is_terminating(&object) && body["spec"]["finalizers"] == json!([])) =>
        {
            return Ok(put(store, place, key, body));
        }
        _ => {
            store.delete(place.resource, &key);
        }
    }
    Ok(Response::new(full(object.to_string())))
}

fn is_terminating(namespace: &Value) -> bool {
    !namespace["metadata"]["deletionTimestamp"].is_null()
}

fn put(store: &mut Store, place: &Place, key: String, object: Value) -> Answer {
    let text = object.to_string();
    store.put(place.resource, key, object);
    Response::new(full(text))
}
