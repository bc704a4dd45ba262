//! Every field, with the text that `kubectl explain` prints for it.

use super::schema::{Rule, Schema, date_time, int32, int64, list, map, metadata, object, string};
use crate::workspace::MOST_NODES;

/// Longest name of a Kubernetes object, for what is looked up by name.
const OBJECT_NAME: i64 = 253;
/// Longest DNS label; longest value of a label.
const LABEL: i64 = 63;
/// Longest key of a label: a DNS name, a slash, a name.
const LABEL_KEY: i64 = 317;
/// Longest reference to an image that is accepted. The API server estimates the costs of rules from it.
const IMAGE: i64 = 1024;
/// Longest address of a file that is taken.
const URL: i64 = 2048;

/// Most items of lists that are short in practice. The API server estimates the costs of rules from it.
const MANY: i64 = 64;
/// Most adapters of a workspace.
const MAX_ADAPTERS: i64 = 10;

pub fn workspace() -> Schema {
    object(
        "A Workspace serves a model on nodes with GPUs: the controller finds or claims the nodes, runs the model's pods on \
         them and puts a Service of the workspace's name before them.",
        [
            (
                "apiVersion",
                string(
                    "Group and version of this representation: kaito.sh/v1beta1, or kaito.sh/v1alpha1 with the same \
                     fields.",
                ),
            ),
            ("kind", string("Kind of this object: Workspace. Cannot be changed.")),
            ("metadata", metadata()),
            ("resource", resource()),
            ("inference", inference()),
            ("status", status()),
        ],
    )
    .require(["resource"])
    .rules([
        Rule::new(
            "oldSelf.hasValue() ? has(self.inference) == has(oldSelf.value().inference) : has(self.inference)",
            "inference must be given when the workspace is created, and may not be set or unset later",
        )
        .at(".inference")
        .also_on_create(),
        // Services are named with DNS labels that begin with a letter; the ranks' Service adds "-headless", and a label on
        // the ranks' pods adds a hyphen and ten characters.
        Rule::new(
            "oldSelf.hasValue() || (self.metadata.name.size() <= 52
             && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$'))",
            "the name of a workspace names a Service: at most 52 lower-case letters, digits and hyphens, beginning with a \
             letter and ending with a letter or digit",
        )
        .at(".metadata.name")
        .also_on_create(),
    ])
}

fn resource() -> Schema {
    object(
        "The nodes that the model runs on. Nodes that match are used; where too few do, more are claimed if the \
         installation claims nodes, else the condition ResourceReady says how many are missing and why.",
        [
            (
                "count",
                // Without the values: the API server's estimate of string() for a number exceeds the cost budget. The
                // webhook's message has them.
                int32("How many nodes. Immutable.").minimum(1).maximum(MOST_NODES).default(1).rules([Rule::new(
                    "self == oldSelf",
                    "field is immutable: to run on another number of nodes, delete the workspace and create it anew",
                )]),
            ),
            (
                "instanceType",
                string(
                    "The cloud's name for the nodes' shape, as Standard_NC24ads_A100_v4, p4d.24xlarge or a2-highgpu-1g. \
                     Nodes labelled with another one are not used. Known types are checked against what the preset needs. \
                     If empty, any node that the selector matches will do. Immutable.",
                )
                .max_length(LABEL),
            ),
            (
                "labelSelector",
                object(
                    "The labels that a node must have to be used, all of them. Immutable.",
                    [
                        (
                            "matchLabels",
                            map(
                                "Labels by key, with the value that each must have.",
                                string("The value of the label.").max_length(LABEL),
                            )
                            .max_properties(MANY),
                        ),
                        (
                            "matchExpressions",
                            list(
                                "Labels with the values that each may have.",
                                object(
                                    "A label, and the values that it may have.",
                                    [
                                        ("key", string("The key of the label.").length(1, LABEL_KEY)),
                                        (
                                            "operator",
                                            string("How the values are meant. In: the label has one of them.").one_of(["In"]),
                                        ),
                                        (
                                            "values",
                                            list(
                                                "The values that the label may have; at least one.",
                                                string("A value of the label.").max_length(LABEL),
                                            )
                                            .min_items(1)
                                            .max_items(MANY)
                                            .atomic_list(),
                                        ),
                                    ],
                                )
                                .require(["key", "operator", "values"]),
                            )
                            .max_items(MANY)
                            .atomic_list(),
                        ),
                    ],
                )
                .atomic_object()
                .rules([Rule::new(
                    "self == oldSelf",
                    "field is immutable: to move a model to other nodes, delete the workspace and create it anew",
                )]),
            ),
            (
                "preferredNodes",
                list(
                    "Names of nodes to use before others. One that does not match is passed over.",
                    string("The name of a node.").length(1, OBJECT_NAME),
                )
                .max_items(1000)
                .atomic_list(),
            ),
        ],
    )
    .require(["labelSelector"])
    .rules([Rule::new(
        "(has(self.instanceType) ? self.instanceType : '') == (has(oldSelf.instanceType) ? oldSelf.instanceType : '')",
        "field is immutable",
    )
    .explained_by(
        "'field is immutable: it is \"' + (has(oldSelf.instanceType) ? oldSelf.instanceType : '') + '\" and cannot become \
         \"' + (has(self.instanceType) ? self.instanceType : '') + '\"; delete the workspace and create it anew'",
    )
    .at(".instanceType")])
}

fn inference() -> Schema {
    object(
        "The model: a preset, or pods of your own. Cannot be set or unset later.",
        [
            ("preset", preset()),
            ("template", template()),
            ("adapters", adapters()),
            (
                "config",
                string(
                    "Name of a ConfigMap, in the workspace's namespace, that holds flags of the server, a key per flag.",
                )
                .max_length(OBJECT_NAME),
            ),
        ],
    )
    .rules([
        Rule::new("has(self.preset) != has(self.template)", "exactly one of preset and template must be given"),
        Rule::new(
            "has(self.preset) == has(oldSelf.preset)",
            "field is immutable: a preset may not be set or unset; delete the workspace and create it anew",
        )
        .at(".preset"),
        Rule::new(
            "has(self.template) == has(oldSelf.template)",
            "field is immutable: a template may change, but not be set or unset; delete the workspace and create it anew",
        )
        .at(".template"),
    ])
}

fn preset() -> Schema {
    object(
        "A model of the catalogue, which `kaito presets` lists. Immutable.",
        [
            (
                "name",
                string(
                    "The name of the model, as llama-2-7b-chat, falcon-40b, mistral-7b-instruct or \
                     phi-3-mini-4k-instruct; case, hyphens and underscores do not matter. Or the id of its card on the \
                     hub, in any case, as tiiuae/falcon-40b.",
                )
                .length(1, LABEL),
            ),
            (
                "accessMode",
                string(
                    "Who keeps the model's image. public: the registry of the installation has it. private: you built \
                     it; name it, or the one of its weights, in presetOptions, or a token to download the weights with. The licence of \
                     Llama 2 wants private.",
                )
                .one_of(["public", "private"])
                .default("public"),
            ),
            (
                "presetOptions",
                object(
                    "Where the weights come from: private images, or a download.",
                    [
                        (
                            "image",
                            string(
                                "The image, with its tag or digest, as registry.example/llama-2-7b:1. Beside weightsImage, the \
                                 image of the server. For private access.",
                            )
                            .max_length(IMAGE),
                        ),
                        (
                            "weightsImage",
                            string(
                                "An image of the weights alone, with its tag or digest, as `kaito image build --weights-only` \
                                 makes it. It is mounted read-only as an image volume where the cluster has these; else an init \
                                 container fetches it. For private access.",
                            )
                            .max_length(IMAGE),
                        ),
                        ("imagePullSecrets", pull_secrets()),
                        (
                            "modelAccessSecret",
                            string(
                                "Name of a secret, in the workspace's namespace, with a token of the Hugging Face hub in its key \
                                 HF_TOKEN. An init container downloads the weights from there with it, and no image of them is needed.",
                            )
                            .max_length(OBJECT_NAME),
                        ),
                        (
                            "weightsClaim",
                            string(
                                "Name of a PersistentVolumeClaim, in the workspace's namespace, that keeps weights which are \
                                 downloaded from the Hugging Face hub, for the next start or for other workspaces. On several nodes \
                                 its access mode must be ReadWriteMany or ReadOnlyMany.",
                            )
                            .max_length(OBJECT_NAME),
                        ),
                    ],
                ),
            ),
        ],
    )
    .require(["name"])
    .rules([
        Rule::new(
            "self.accessMode != 'private' || (has(self.presetOptions)
             && ((has(self.presetOptions.image) && self.presetOptions.image != '')
             || (has(self.presetOptions.weightsImage) && self.presetOptions.weightsImage != '')
             || (has(self.presetOptions.modelAccessSecret) && self.presetOptions.modelAccessSecret != '')
             || (has(self.presetOptions.weightsClaim) && self.presetOptions.weightsClaim != '')))",
            "accessMode private needs the image that you built, as registry.example/llama-2-7b:1, or a weightsImage, or a \
             modelAccessSecret to download the weights with",
        )
        .at(".presetOptions.image"),
        Rule::new(
            &format!(
                "self.name == oldSelf.name && self.accessMode == oldSelf.accessMode && {} && {} && {} && {} && {}",
                same_option("image", "''"),
                same_option("weightsImage", "''"),
                same_option("imagePullSecrets", "[]"),
                same_option("modelAccessSecret", "''"),
                same_option("weightsClaim", "''")
            ),
            "field is immutable: to serve another model, delete the workspace and create it anew",
        ),
    ])
}

/// A rule that a field of the preset's options is immutable; absent means `empty`.
fn same_option(field: &str, empty: &str) -> String {
    let value = |preset: &str| {
        format!(
            "(has({preset}.presetOptions) && has({preset}.presetOptions.{field}) ? {preset}.presetOptions.{field} : {empty})"
        )
    };
    format!("{} == {}", value("self"), value("oldSelf"))
}

fn template() -> Schema {
    object(
        "The pods to run instead of a preset's: a pod template as a Deployment has it. The server in it must answer HTTP on \
         port 5000. May change, but not be set or unset later.",
        [
            (
                "metadata",
                object(
                    "Metadata of the pods.",
                    [
                        ("labels", map("Labels of the pods.", string("The value of the label."))),
                        ("annotations", map("Annotations of the pods.", string("The value of the annotation."))),
                    ],
                )
                .open(),
            ),
            (
                "spec",
                object(
                    "Specification of the pods; every field of a PodSpec is allowed (kubectl explain pod.spec).",
                    [(
                        "containers",
                        list(
                            "The containers of a pod; every field of a Container is allowed (kubectl explain \
                             pod.spec.containers).",
                            object(
                                "A container.",
                                [
                                    ("name", string("Name of the container, a DNS label.").length(1, LABEL)),
                                    ("image", string("The image, with its tag or digest.")),
                                ],
                            )
                            .open()
                            .require(["name"]),
                        )
                        .min_items(1)
                        .max_items(MANY),
                    )],
                )
                .open()
                .require(["containers"]),
            ),
        ],
    )
    .open()
    .require(["spec"])
}

fn adapters() -> Schema {
    list(
        "Adapters to merge into the model, 10 at most.",
        object(
            "An adapter, and how strongly it acts.",
            [
                ("source", adapter_source()),
                (
                    "strength",
                    string("Multiplier of the adapter's weights: a number from 0 to 1, as text. 1 if absent.")
                        .max_length(32)
                        .rules([Rule::new(
                            "self == '' || (self.matches('^([0-9]+([.][0-9]*)?|[.][0-9]+)([eE][-+]?[0-9]+)?$')
                             && double(self) >= 0.0 && double(self) <= 1.0)",
                            "a number from 0 to 1 is needed, as \"0.5\"",
                        )
                        .explained_by("'a number from 0 to 1 is needed, as \"0.5\", not \"' + self + '\"'")]),
                ),
            ],
        )
        .require(["source"]),
    )
    .max_items(MAX_ADAPTERS)
    .atomic_list()
    .rules([Rule::new(
        "self.all(a, self.exists_one(b, b.source.name == a.source.name))",
        "names of adapters must be unique: each names a folder",
    )])
}

fn adapter_source() -> Schema {
    object(
        "Where the adapter comes from.",
        [
            (
                "name",
                string("Names the adapter's init container and its folder, /mnt/adapter/<name>: a DNS label, unique.")
                    .length(1, LABEL)
                    .rules([Rule::new(
                        "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
                        "the name of an adapter is a DNS label: lower-case letters, digits and hyphens, beginning and \
                         ending with a letter or digit",
                    )]),
            ),
            (
                "image",
                string("The image that holds the adapter in its folder /data, with its tag or digest.")
                    .max_length(IMAGE)
                    .rules([Rule::new(
                        "self == '' || self.matches('^[^@ ]*[^:/@ ](:[A-Za-z0-9_][-A-Za-z0-9_.]*|@sha256:[0-9a-f]{64})$')",
                        "an image is needed with its tag or digest, as registry.example/adapter:1",
                    )]),
            ),
            ("imagePullSecrets", pull_secrets()),
            (
                "urls",
                list("Addresses of the adapter's files.", string("The address of a file.").length(1, URL))
                    .max_items(MANY)
                    .atomic_list(),
            ),
            (
                "volumeSource",
                object(
                    "A volume that holds the adapter; every source of a volume is allowed (kubectl explain pod.spec.volumes).",
                    [],
                )
                .open(),
            ),
        ],
    )
    .require(["name"])
}

fn pull_secrets() -> Schema {
    list(
        "Names of secrets, in the workspace's namespace, to pull the image with.",
        string("The name of a secret.").length(1, OBJECT_NAME),
    )
    .max_items(MANY)
    .atomic_list()
}

fn status() -> Schema {
    object(
        "What the controller observed last. Written by the controller alone.",
        [
            ("workerNodes", list("Names of the nodes in use.", string("The name of a node.")).atomic_list()),
            ("conditions", conditions()),
            (
                "state",
                string(
                    "The conditions in one word. Pending: something is still on its way. Ready: the model answers. NotReady: \
                     something fails, and the conditions say what.",
                ),
            ),
            ("targetNodeCount", int32("How many nodes the model runs on once all are there.")),
        ],
    )
}

fn conditions() -> Schema {
    list(
        "What is ready and what is not, each with its cause: ResourceReady (the nodes are there), NodeClaimReady (the claims \
         of nodes are fulfilled), InferenceReady (the model answers), WorkspaceReady (all of it).",
        object(
            "One aspect of the workspace.",
            [
                (
                    "type",
                    string("The aspect: ResourceReady, NodeClaimReady, InferenceReady or WorkspaceReady.").length(1, 316),
                ),
                (
                    "status",
                    string("Whether it is so: True, False, or Unknown.").one_of(["True", "False", "Unknown"]),
                ),
                (
                    "reason",
                    string("The cause in one word, as NodesMissing, ImagePullError or ContainerOOMKilled.")
                        .length(1, 1024)
                        .pattern("^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"),
                ),
                ("message", string("The cause in a sentence, with names and numbers.").max_length(32768)),
                ("lastTransitionTime", date_time("When the status last became another.")),
                (
                    "observedGeneration",
                    int64("The metadata.generation that this was observed of; less than that is out of date.").minimum(0),
                ),
            ],
        )
        .require(["lastTransitionTime", "message", "reason", "status", "type"]),
    )
    .keyed_by("type")
}
