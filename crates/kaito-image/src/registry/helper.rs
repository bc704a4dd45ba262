//! Credential helpers: programs that return passwords, by Docker's protocol.

use std::{io, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::Command,
};

use super::{Credentials, Error, credentials::from_user};

const MAX_OUTPUT: u64 = 64 << 10;
/// A helper may ask a cloud for a token, or its user for a touch of a key.
const TIMEOUT: Duration = Duration::from_secs(60);

pub(super) fn helper_name(helper: &str) -> String {
    format!("docker-credential-{helper}")
}

/// What a credential helper knows about a server: a program that reads the server's name and writes JSON.
pub(super) async fn ask_helper(helper: &str, server: &str) -> Result<Option<Credentials>, Error> {
    let program = helper_name(helper);
    let error = |cause: String| Error::Credentials { from: program.clone(), cause };
    // A name, not a path: a configuration must not make a program run that is not installed as a helper.
    if !helper.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        return Err(error("a helper's name has letters, digits, '-', '_' and '.' alone".to_owned()));
    }
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|cause| error(format!("{cause}; is it installed, and in a directory of PATH?")))?;
    let conversation = async {
        if let Some(mut stdin) = child.stdin.take() {
            // A helper that asks nothing may have closed it.
            let _ = stdin.write_all(format!("{server}\n").as_bytes()).await;
        }
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (stdout, stderr) = tokio::try_join!(read_bounded(stdout), read_bounded(stderr))?;
        Ok::<_, io::Error>((child.wait().await?, stdout, stderr))
    };
    let (status, stdout, stderr) = tokio::time::timeout(TIMEOUT, conversation)
        .await
        .map_err(|_| error(format!("no answer within {TIMEOUT:?}")))?
        .map_err(|cause| error(cause.to_string()))?;
    if !status.success() {
        // By the helpers' protocol this is written to the standard output.
        if stdout.contains("credentials not found") {
            return Ok(None);
        }
        let said = if stdout.trim().is_empty() { stderr } else { stdout };
        let said: String = said.trim().chars().take(500).collect();
        return Err(error(format!("{status} for {server}: {said}")));
    }
    // Its text may hold the secret, so the error does not quote it.
    let answer = helper_answer(&stdout);
    let (user, secret) = answer.ok_or_else(|| error(format!("its answer for {server} is not what helpers answer")))?;
    Ok(from_user(user, secret))
}

/// The user and the secret of a helper's answer, read as Docker reads it: the case of names does not count, what is not
/// there is empty, and what follows the answer is nothing. No answer at all is empty too.
fn helper_answer(stdout: &str) -> Option<(String, String)> {
    use serde_json::{Map, Value};
    let fields = match serde_json::Deserializer::from_str(stdout).into_iter::<Option<Map<String, Value>>>().next() {
        None => Map::new(),
        Some(answer) => answer.ok()?.unwrap_or_default(),
    };
    let field = |name: &str| match fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)) {
        None | Some((_, Value::Null)) => Some(String::new()),
        Some((_, Value::String(text))) => Some(text.clone()),
        Some(_) => None,
    };
    Some((field("username")?, field("secret")?))
}

async fn read_bounded(pipe: Option<impl AsyncRead + Unpin>) -> io::Result<String> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(MAX_OUTPUT + 1).read_to_end(&mut bytes).await?;
    }
    if bytes.len() as u64 > MAX_OUTPUT {
        return Err(io::Error::other(format!("it wrote more than {MAX_OUTPUT} bytes")));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answers_of_helpers_are_read_as_docker_reads_them() {
        let is = |user: &str, secret: &str| Some((user.to_owned(), secret.to_owned()));
        for (stdout, answer) in [
            (r#"{"ServerURL": "r.test", "Username": "a", "Secret": "b"}"#, is("a", "b")),
            (r#"{"username": "a", "SECRET": "b"}"#, is("a", "b")),
            ("{\"Username\": \"a\", \"Secret\": \"b\"}\nupdate available", is("a", "b")),
            (r#"{"Username": "", "Secret": ""}"#, is("", "")),
            (r#"{"Username": null}"#, is("", "")),
            ("{}", is("", "")),
            ("null", is("", "")),
            (" \n", is("", "")),
            (r#"{"Username": "a", "Secret": 5}"#, None),
            ("a token", None),
            ("[]", None),
        ] {
            assert_eq!(helper_answer(stdout), answer, "{stdout}");
        }
    }

    #[tokio::test]
    async fn a_helper_is_a_name_and_must_exist() {
        for (helper, says) in [
            ("../../bin/sh", "letters, digits"),
            ("a b", "letters, digits"),
            ("that-nobody-has-installed", "is it installed"),
        ] {
            let error = ask_helper(helper, "r.test").await.unwrap_err().to_string();
            assert!(error.contains(says), "{helper}: {error}");
        }
    }
}
