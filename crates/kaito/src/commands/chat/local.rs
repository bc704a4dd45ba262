//! A model in this process.

use std::num::NonZeroUsize;

use kaito_engine::{
    Cancel, ChatMessage, DialogFormat, GenerateOptions, LanguageModel, Prepared, Prompt, Request, StreamEvent,
    dialects::meta::{ChatRequest, MetaOptions},
};
use kaito_presets::PresetKind;

use super::Answer;
use crate::{
    args::ChatArgs,
    model::{ModelSource, with_flags},
};

const MAX_NEW_TOKENS: usize = 512;
const TEMPERATURE: f32 = 0.6;

/// A loaded model, and how it is asked.
pub struct Local {
    name: String,
    model: LanguageModel,
    manner: Manner,
    max_new_tokens: usize,
    temperature: f32,
    seed: Option<u64>,
}

/// How a conversation becomes a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// By the model's chat template.
    Template,
    /// By Llama 2's dialog format.
    Dialog,
    /// Not at all: the model continues each line by itself.
    Continuation,
}

impl Manner {
    fn of(source: &ModelSource, model: &LanguageModel) -> Self {
        let info = model.info();
        if source.preset.is_some_and(|preset| preset.kind == PresetKind::Completion) {
            Manner::Continuation
        } else if info.chat_template {
            Manner::Template
        } else if info.dialog_format == Some(DialogFormat::Llama2) {
            Manner::Dialog
        } else {
            Manner::Continuation
        }
    }
}

impl Local {
    pub fn load(args: &ChatArgs) -> anyhow::Result<Self> {
        args.model.choose_kernels()?;
        let source = ModelSource::resolve(&args.model)?;
        let model = source.load(&args.model.load_options(), &|_| {})?;
        Ok(Self {
            manner: Manner::of(&source, &model),
            name: source.name,
            model,
            max_new_tokens: args.max_new_tokens.map_or(MAX_NEW_TOKENS, NonZeroUsize::get),
            temperature: args.temperature.unwrap_or(TEMPERATURE),
            seed: args.seed,
        })
    }

    pub fn introduction(&self) -> String {
        let manner = match self.manner {
            Manner::Template | Manner::Dialog => "",
            Manner::Continuation => " It was not made for dialogue: it continues what you write.",
        };
        format!("This is {}.{manner}", self.name)
    }

    pub async fn answer(&self, mut conversation: Vec<ChatMessage>, answer: &mut Answer) -> anyhow::Result<()> {
        let prompts = match self.manner {
            Manner::Template => self.prepare(conversation.into())?,
            Manner::Continuation => {
                let line = conversation.pop().map(|message| message.content).unwrap_or_default();
                self.prepare(line.as_str().into())?
            }
            Manner::Dialog => self.prepare_dialog(conversation)?,
        };
        let mut stream = self.model.start(prompts).map_err(with_flags)?;
        loop {
            match stream.next().await.transpose().map_err(with_flags)? {
                Some(StreamEvent::Started | StreamEvent::PromptScored(_)) => {}
                Some(StreamEvent::Delta(delta)) => self.say(answer, &delta.text)?,
                Some(StreamEvent::Finished(_)) | None => return Ok(()),
            }
        }
    }

    fn prepare(&self, prompt: Prompt) -> anyhow::Result<Vec<Prepared>> {
        let sampled = self.temperature > 0.0;
        let options = GenerateOptions {
            max_new_tokens: Some(self.max_new_tokens),
            do_sample: Some(sampled),
            temperature: sampled.then_some(self.temperature.into()),
            seed: self.seed,
            ..GenerateOptions::default()
        };
        let request = Request { prompt, options, ..Request::default() };
        Ok(vec![request.prepare(self.model.context(), &Cancel::default()).map_err(with_flags)?])
    }

    fn prepare_dialog(&self, dialog: Vec<ChatMessage>) -> anyhow::Result<Vec<Prepared>> {
        let options = MetaOptions {
            temperature: Some(self.temperature.into()),
            max_gen_len: Some(self.max_new_tokens),
            seed: self.seed,
            ..MetaOptions::default()
        };
        let request = ChatRequest { dialogs: vec![dialog], options };
        request.prepare(self.model.context(), &Cancel::default()).map_err(with_flags)
    }

    /// An answer begins at its first word: templates leave a space before it.
    fn say(&self, answer: &mut Answer, text: &str) -> anyhow::Result<()> {
        let trimmed = answer.text.is_empty() && self.manner != Manner::Continuation;
        let text = if trimmed { text.trim_start() } else { text };
        answer.say(text, text)
    }
}
