use serde_json::json;

use super::*;

/// A request as kube-apiserver 1.34 sends it.
fn request(operation: &str, object: &Value, old_object: &Value, options: &Value) -> Value {
    json!({
        "kind": "AdmissionReview",
        "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": "kaito.sh", "version": "v1beta1", "kind": "Workspace"},
            "resource": {"group": "kaito.sh", "version": "v1beta1", "resource": "workspaces"},
            "requestKind": {"group": "kaito.sh", "version": "v1alpha1", "kind": "Workspace"},
            "requestResource": {"group": "kaito.sh", "version": "v1alpha1", "resource": "workspaces"},
            "name": "falcon",
            "namespace": "models",
            "operation": operation,
            "userInfo": {
                "username": "kubernetes-admin",
                "groups": ["kubeadm:cluster-admins", "system:authenticated"],
                "extra": {"authentication.kubernetes.io/credential-id": ["X509SHA256=0a"]}
            },
            "object": object,
            "oldObject": old_object,
            "dryRun": false,
            "options": options
        }
    })
}

fn create_options(field_validation: &str) -> Value {
    json!({
        "kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1", "fieldManager": "kubectl-client-side-apply",
        "fieldValidation": field_validation
    })
}

/// A workspace with the defaults of the schema.
fn falcon() -> Value {
    json!({
        "apiVersion": "kaito.sh/v1beta1",
        "kind": "Workspace",
        "metadata": {
            "name": "falcon", "namespace": "models", "uid": "1", "generation": 1,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "managedFields": [{
                "manager": "kubectl-client-side-apply", "operation": "Update", "apiVersion": "kaito.sh/v1alpha1",
                "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": {"f:inference": {"f:preset": {}}}
            }]
        },
        "resource": {"count": 1, "instanceType": "Standard_NC24ads_A100_v4", "labelSelector": {"matchLabels": {"apps": "falcon"}}},
        "inference": {
            "preset": {"name": "falcon-7b", "accessMode": "public"},
            "adapters": [
                {"source": {"name": "style", "image": "registry.example/style:1"}},
                {"source": {"name": "tone", "image": "registry.example/tone:1"}, "strength": "0.5"}
            ]
        }
    })
}

fn template() -> Value {
    let mut object = falcon();
    object["inference"] = json!({
        "template": {"spec": {"containers": [{"name": "server", "image": "registry.example/server:1", "imagee": "x"}]}}
    });
    object
}

fn changed(mut object: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    object.pointer_mut(parent).unwrap()[key] = value;
    object
}

fn answer(webhook: Webhook, request: &Value) -> (Answer, Value) {
    let answer = review(webhook, request.to_string().as_bytes(), &InstanceTypes::built_in()).unwrap();
    let value: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(value["apiVersion"], "admission.k8s.io/v1");
    assert_eq!(value["kind"], "AdmissionReview");
    assert_eq!(value["response"]["uid"], "705ab4f5-6393-11e8-b7cc-42010a800002");
    assert_eq!(value["response"]["allowed"], answer.is_allowed);
    assert!(value.get("request").is_none(), "the request is sent back");
    (answer, value["response"].clone())
}

#[test]
fn what_is_right_passes() {
    let (answer, response) =
        answer(Webhook::Validate, &request("CREATE", &falcon(), &json!(null), &create_options("Strict")));
    assert!(answer.is_allowed, "{response}");
    assert_eq!(answer.operation, "create");
    assert_eq!(response["warnings"], json!(null), "{response}");
}

#[test]
fn every_reason_is_given_at_once_as_the_api_server_does() {
    let wrong = changed(changed(falcon(), "/resource/count", json!(0)), "/inference/preset/name", json!("falcon-7c"));
    let (answer, response) =
        answer(Webhook::Validate, &request("CREATE", &wrong, &json!(null), &create_options("Strict")));
    assert!(!answer.is_allowed);
    let status = &response["status"];
    assert_eq!(
        (&status["code"], &status["reason"], &status["status"]),
        (&json!(422), &json!("Invalid"), &json!("Failure"))
    );
    // kubectl prints: The Workspace "falcon" is invalid.
    assert_eq!((&status["details"]["name"], &status["details"]["kind"]), (&json!("falcon"), &json!("Workspace")));
    let fields: Vec<_> =
        status["details"]["causes"].as_array().unwrap().iter().map(|cause| cause["field"].as_str().unwrap()).collect();
    assert_eq!(fields, ["resource.count", "inference.preset.name"]);
    let message = status["message"].as_str().unwrap();
    assert!(message.starts_with("2 fields are wrong:\n- resource.count: "), "{message}");
    assert!(message.contains("\n- inference.preset.name: "), "{message}");
}

#[test]
fn an_update_is_judged_by_what_changed() {
    let moved = changed(falcon(), "/resource/count", json!(2));
    let labelled = changed(falcon(), "/metadata/labels", json!({"a": "b"}));
    for (new, allowed) in [(moved, false), (labelled, true), (falcon(), true)] {
        let (answer, response) =
            answer(Webhook::Validate, &request("UPDATE", &new, &falcon(), &json!({"kind": "UpdateOptions"})));
        assert_eq!((answer.is_allowed, answer.operation), (allowed, "update"), "{response}");
        if !allowed {
            let message = response["status"]["message"].as_str().unwrap();
            assert!(message.starts_with("resource.count: field is immutable"), "{message}");
        }
    }
}

/// Finalizers must be removable, whatever else the object is.
#[test]
fn what_is_being_deleted_passes() {
    let wrong = changed(falcon(), "/inference", json!({}));
    let leaving = changed(wrong.clone(), "/metadata/deletionTimestamp", json!("2026-01-02T00:00:00Z"));
    let mut of_status = request("UPDATE", &wrong, &falcon(), &json!(null));
    of_status["request"]["subResource"] = json!("status");
    for request in [
        request("UPDATE", &leaving, &falcon(), &json!(null)),
        request("DELETE", &json!(null), &wrong, &json!({"kind": "DeleteOptions"})),
        of_status,
    ] {
        for webhook in [Webhook::Validate, Webhook::Mutate] {
            let (answer, response) = answer(webhook, &request);
            assert!(answer.is_allowed && response.get("patch").is_none(), "{response}");
        }
    }
}

/// The schema of the template is open, so that the API server cannot know them.
#[test]
fn unknown_fields_of_a_template_are_treated_as_the_client_wants_it() {
    let path = "inference.template.spec.containers[0].imagee: unknown field";
    for (validation, allowed, warned) in [
        (json!("Strict"), false, false),
        (json!("Warn"), true, true),
        (json!(null), true, true),
        (json!("Ignore"), true, false),
    ] {
        let mut options = create_options("");
        options["fieldValidation"] = validation.clone();
        let (answer, response) = answer(Webhook::Validate, &request("CREATE", &template(), &json!(null), &options));
        assert_eq!(answer.is_allowed, allowed, "{validation}");
        if !allowed {
            assert!(response["status"]["message"].as_str().unwrap().starts_with(path), "{response}");
        }
        let warnings = response["warnings"].as_array().into_iter().flatten();
        assert_eq!(
            warnings.filter(|warning| warning.as_str().unwrap().starts_with(path)).count() == 1,
            warned,
            "{response}"
        );
    }
    let (answer, response) =
        answer(Webhook::Validate, &request("UPDATE", &template(), &template(), &create_options("Strict")));
    assert!(answer.is_allowed, "it has been so before: {response}");
}

#[test]
fn a_value_of_the_wrong_type_is_refused_with_its_path() {
    let wrong = changed(template(), "/inference/template/spec/containers/0/name", json!(5));
    let (answer, response) = answer(Webhook::Validate, &request("CREATE", &wrong, &json!(null), &json!(null)));
    assert!(!answer.is_allowed);
    assert_eq!(
        response["status"]["message"],
        "inference.template.spec.containers[0].name: is integer `5`, but must be a string"
    );
    let (answer, response) =
        super::tests::answer(Webhook::Mutate, &request("CREATE", &wrong, &json!(null), &json!(null)));
    assert!(answer.is_allowed && response.get("patch").is_none(), "{response}");
}

/// The patch is applied as the API server applies it.
#[test]
fn defaults_touch_nothing_else() {
    let (_, response) = answer(Webhook::Mutate, &request("CREATE", &falcon(), &json!(null), &json!(null)));
    assert_eq!(response["patchType"], "JSONPatch");
    let bytes: ByteString = serde_json::from_value(response["patch"].clone()).unwrap();
    let patch: json_patch::Patch = serde_json::from_slice(&bytes.0).unwrap();
    let mut object = falcon();
    json_patch::patch(&mut object, &patch).unwrap();
    assert_eq!(object, changed(falcon(), "/inference/adapters/0/strength", json!("1.0")));
    let (_, again) = answer(Webhook::Mutate, &request("CREATE", &object, &json!(null), &json!(null)));
    assert_eq!((again.get("patch"), &again["allowed"]), (None, &json!(true)));
}

#[test]
fn what_is_no_review_of_a_workspace_is_an_error_with_its_cause() {
    let good = request("CREATE", &falcon(), &json!(null), &json!(null));
    for (body, expected) in [
        (String::new(), "the body is no AdmissionReview: EOF"),
        ("[]".to_owned(), "the body is no AdmissionReview: "),
        (
            changed(good.clone(), "/apiVersion", json!("admission.k8s.io/v1beta1")).to_string(),
            "this webhook speaks admission.k8s.io/v1",
        ),
        (changed(good.clone(), "/request", json!(null)).to_string(), "has no request"),
        (
            changed(good.clone(), "/request/kind/kind", json!("Pod")).to_string(),
            "the review is of a Pod of the group \"kaito.sh\"",
        ),
        (changed(good.clone(), "/request/operation", json!("PAINT")).to_string(), "unknown variant `PAINT`"),
        (changed(good, "/request/uid", json!(1)).to_string(), "invalid type"),
    ] {
        let error = review(Webhook::Validate, body.as_bytes(), &InstanceTypes::built_in()).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

proptest::proptest! {
    #[test]
    fn no_body_breaks_it(
        pointer in proptest::sample::select(vec![
            "/request", "/request/object", "/request/oldObject", "/request/options", "/request/object/metadata",
            "/request/object/resource", "/request/object/resource/count", "/request/object/inference",
            "/request/object/inference/adapters", "/request/object/inference/preset/name",
            "/request/object/resource/labelSelector", "/request/object/inference/adapters/0/source/image",
        ]),
        value in proptest::sample::select(vec![
            json!(null), json!(-1), json!(1e300), json!(""), json!("a:b@c/d"), json!([]), json!([null]), json!({}),
            json!({"matchExpressions": [{}]}), json!(true), json!("\u{0}"), json!({"fieldValidation": 1}),
        ]),
        operation in proptest::sample::select(vec!["CREATE", "UPDATE"]),
    ) {
        let body = changed(request(operation, &falcon(), &template(), &create_options("Strict")), pointer, value).to_string();
        for webhook in [Webhook::Validate, Webhook::Mutate] {
            if let Ok(answer) = review(webhook, body.as_bytes(), &InstanceTypes::built_in()) {
                proptest::prop_assert!(serde_json::from_slice::<Value>(&answer.body).is_ok());
            }
        }
    }
}
