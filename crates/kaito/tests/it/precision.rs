//! The commands of docs/precision.md: the demo in fewer bits, made at the first start and mapped at the second.

use std::{fs, path::PathBuf, time::SystemTime};

use kaito_testing::process::Serving;

use crate::{documents, program::kaito};

#[test]
fn quantised_weights_are_made_once() {
    let document = documents::read("docs/precision.md");
    let commands: Vec<&str> = document.lines().filter_map(|line| line.strip_prefix("kaito ")).collect();
    assert!(commands.len() >= 2, "{commands:?}");
    for command in commands {
        let cache = tempfile::tempdir().unwrap();
        let arguments: Vec<&str> = command.split_whitespace().collect();
        let run = || {
            let serving = Serving::start(kaito(&arguments).env("XDG_CACHE_HOME", cache.path()));
            let precision = arguments.windows(2).find(|pair| pair[0] == "--quantize").unwrap()[1];
            assert!(serving.summary.contains(&format!(" in {precision},")), "{}", serving.summary);
            if let Some(pair) = arguments.windows(2).find(|pair| pair[0] == "--kv-dtype") {
                assert!(serving.summary.contains(&format!(" pages in {}", pair[1])), "{}", serving.summary);
            }
            let body = r#"{"prompt":"What is a workspace?","generate_kwargs":{"max_length":40,"do_sample":false}}"#;
            let answer = serving.post("/chat", body);
            assert_eq!(answer.0, 200, "{}", answer.1);
            assert!(serving.terminate().success());
            answer.1
        };
        let files = || -> Vec<(PathBuf, SystemTime)> {
            let entries = fs::read_dir(cache.path().join("kaito/quantized")).unwrap();
            entries.map(|entry| entry.unwrap()).map(|e| (e.path(), e.metadata().unwrap().modified().unwrap())).collect()
        };
        let first = run();
        let made = files();
        assert_eq!(made.len(), 1, "{made:?}");
        assert_eq!(run(), first, "{command}: the second start answers otherwise");
        assert_eq!(files(), made, "{command}: the second start wrote the file again");
    }
}
