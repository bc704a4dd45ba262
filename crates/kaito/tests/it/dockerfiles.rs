//! The Dockerfiles that documents name are one text, and know every build argument that a document gives.

use crate::documents::{blocks_of, read};

#[test]
fn the_documents_dockerfiles_are_one_text() {
    let text = read("Dockerfile");
    for path in [
        "docker/presets/llama-2/Dockerfile",
        "docker/presets/inference/llama-2/Dockerfile",
        "docker/presets/inference/falcon/Dockerfile",
        "docker/presets/inference/mistral/Dockerfile",
        "docker/presets/inference/phi-3/Dockerfile",
    ] {
        assert!(read(path) == text, "{path} is not Dockerfile");
    }
    for argument in ["WEIGHTS_PATH", "MODEL_TYPE", "VERSION", "LLAMA_WEIGHTS", "SRC_DIR", "LLAMA_VERSION"] {
        assert!(text.contains(&format!("\nARG {argument}=")), "{argument}");
    }
}

/// Cargo refuses a workspace of which a member is not there.
#[test]
fn every_member_of_the_workspace_is_copied() {
    let (workspace, dockerfile, ignored) = (read("Cargo.toml"), read("Dockerfile"), read(".dockerignore"));
    let members = workspace.lines().find_map(|line| line.strip_prefix("members = [")).unwrap();
    let members: Vec<&str> = members.split('"').skip(1).step_by(2).collect();
    assert!(members.contains(&"crates/*"), "{members:?}");
    for member in members {
        let folder = member.trim_end_matches("/*");
        assert!(dockerfile.contains(&format!("\nCOPY {folder} {folder}\n")), "{folder} is not copied");
        let mut above = folder.match_indices('/').map(|(end, _)| &folder[..end]).chain([folder]);
        assert!(above.all(|path| !ignored.lines().any(|line| line == path)), "{folder} is ignored");
    }
}

/// `docker` lines are in the script word for word, `kaito image` lines are taken from the documentation by it.
#[test]
fn the_commands_of_the_documentation_are_tested() {
    let (documentation, dockerfiles) = (read("docs/images.md"), read("tests/image/dockerfiles"));
    assert!(read("tests/image/run").contains("grep '^kaito image ' docs/images.md"));
    let mut lines = 0;
    for line in blocks_of(&documentation, "sh").into_iter().flat_map(str::lines) {
        lines += 1;
        assert!(line.starts_with("kaito image ") || dockerfiles.contains(line.trim()), "no test runs {line:?}");
    }
    assert!(lines >= 10, "only {lines} lines");
}
