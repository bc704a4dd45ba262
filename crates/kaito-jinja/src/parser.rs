//! Statements. Also what Jinja2 finds wrong with a template before it runs.

use std::collections::HashMap;

use crate::ast::{Args, Block, Escaping, Expr, For, Macro, Node, Stmt, Symbol, Tables};
use crate::fault::Error;
use crate::lexer::{Token, tokenize};

/// Longest template, in bytes. Published ones have up to some twenty thousand.
const MAX_SOURCE: usize = 1 << 20;
/// How deep statements may nest.
const MAX_STATEMENTS: usize = 40;
/// How deep parentheses and the like may nest.
const MAX_NESTING: usize = 60;
/// How deep operations may nest, which a chain of them does as well.
const MAX_EXPRESSION: u16 = 160;
/// The names that a macro has beside its parameters.
const SPECIAL: [&str; 3] = ["caller", "kwargs", "varargs"];

pub(crate) type Parsed<T> = Result<T, Error>;

/// Which special names a macro's body reads before it assigns them.
#[derive(Default, Clone, Copy)]
struct Special {
    read: [bool; 3],
    assigned: [bool; 3],
}

pub(crate) struct Parser {
    tokens: Vec<(Token, u32)>,
    at: usize,
    pub(crate) tables: Tables,
    symbols: HashMap<String, Symbol>,
    special: Vec<Special>,
    /// Filters and tests that do not exist, in places that may never run only if the condition around them is false.
    pub(crate) unknown: Vec<(String, u32)>,
    nesting: usize,
    statements: usize,
    /// Loops around this place that `break` can end, and loops at all.
    breakable: usize,
    pub(crate) loops: usize,
    toplevel: bool,
    escaping: Escaping,
}

/// Parses a template.
pub(crate) fn parse(source: &str) -> Parsed<Tables> {
    if source.len() > MAX_SOURCE {
        let message = format!("the template has {} bytes, more than the {MAX_SOURCE} that it may have", source.len());
        return Err(Error::Limit { message });
    }
    let mut parser = Parser {
        tokens: tokenize(source)?,
        at: 0,
        tables: Tables::default(),
        symbols: HashMap::new(),
        special: Vec::new(),
        unknown: Vec::new(),
        nesting: 0,
        statements: 0,
        breakable: 0,
        loops: 0,
        toplevel: true,
        escaping: Escaping::Off,
    };
    parser.tables.body = parser.body(&[])?;
    parser.known_since(0)?;
    Ok(parser.tables)
}

impl Parser {
    pub(crate) fn current(&self) -> &Token {
        self.tokens.get(self.at).map_or(&Token::End, |(token, _)| token)
    }

    pub(crate) fn ahead(&self) -> &Token {
        self.tokens.get(self.at + 1).map_or(&Token::End, |(token, _)| token)
    }

    pub(crate) fn line(&self) -> u32 {
        let token = self.tokens.get(self.at).or(self.tokens.last());
        token.map_or(1, |(_, line)| *line)
    }

    pub(crate) fn skip(&mut self) {
        self.at += 1;
    }

    pub(crate) fn error<T>(&self, message: impl Into<String>) -> Parsed<T> {
        Err(Error::Syntax { line: self.line(), message: message.into() })
    }

    pub(crate) fn unexpected<T>(&self, expected: &str) -> Parsed<T> {
        self.error(format!("expected token '{expected}', got '{}'", self.current().describe()))
    }

    pub(crate) fn is_op(&self, op: &str) -> bool {
        matches!(self.current(), Token::Op(current) if *current == op)
    }

    pub(crate) fn is_name(&self, name: &str) -> bool {
        matches!(self.current(), Token::Name(current) if current == name)
    }

    pub(crate) fn accept_op(&mut self, op: &str) -> bool {
        let found = self.is_op(op);
        self.at += usize::from(found);
        found
    }

    pub(crate) fn accept_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        self.at += usize::from(found);
        found
    }

    pub(crate) fn expect_op(&mut self, op: &str) -> Parsed<()> {
        if self.accept_op(op) { Ok(()) } else { self.unexpected(op) }
    }

    fn expect_name(&mut self, name: &str) -> Parsed<()> {
        if self.accept_name(name) { Ok(()) } else { self.unexpected(name) }
    }

    pub(crate) fn name(&mut self) -> Parsed<String> {
        let Token::Name(name) = self.current() else { return self.unexpected("name") };
        let name = name.clone();
        self.skip();
        Ok(name)
    }

    pub(crate) fn symbol(&mut self, text: String) -> Symbol {
        if let Some(symbol) = self.symbols.get(&text) {
            return *symbol;
        }
        // A template has fewer strings than bytes.
        let symbol = Symbol(u32::try_from(self.tables.texts.len()).unwrap_or(u32::MAX));
        self.tables.texts.push(text.clone());
        self.symbols.insert(text, symbol);
        symbol
    }

    /// Makes an expression, unless operations then nest too deep.
    pub(crate) fn expr(&self, node: Node, line: u32, below: u16) -> Parsed<Expr> {
        if below >= MAX_EXPRESSION {
            let message = format!("line {line}: an expression nests deeper than {MAX_EXPRESSION} operations");
            return Err(Error::Limit { message });
        }
        Ok(Expr { node, line, depth: below + 1 })
    }

    pub(crate) fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.nesting >= MAX_NESTING {
            let line = self.line();
            let message = format!("line {line}: an expression nests deeper than {MAX_NESTING} levels");
            return Err(Error::Limit { message });
        }
        self.nesting += 1;
        let parsed = parse(self);
        self.nesting -= 1;
        parsed
    }

    /// A name is read here.
    pub(crate) fn load(&mut self, name: &str) {
        if let Some(index) = SPECIAL.iter().position(|special| *special == name) {
            for special in &mut self.special {
                special.read[index] |= !special.assigned[index];
            }
        }
    }

    pub(crate) fn store(&mut self, name: &str) {
        if let Some(index) = SPECIAL.iter().position(|special| *special == name) {
            for special in &mut self.special {
                special.assigned[index] = true;
            }
        }
    }

    /// Fails if a filter or test that does not exist was named since there were `mark` of them.
    pub(crate) fn known_since(&self, mark: usize) -> Parsed<()> {
        match self.unknown.get(mark) {
            None => Ok(()),
            Some((message, line)) => Err(Error::Syntax { line: *line, message: message.clone() }),
        }
    }

    /// Statements up to a tag that is one of `ends`, which is the current token then; without `ends`, up to the end.
    fn body(&mut self, ends: &[&str]) -> Parsed<Vec<Stmt>> {
        if self.statements >= MAX_STATEMENTS {
            let line = self.line();
            let message = format!("line {line}: statements nest deeper than {MAX_STATEMENTS} levels");
            return Err(Error::Limit { message });
        }
        self.statements += 1;
        let mut body = Vec::new();
        loop {
            match self.current().clone() {
                Token::Data(text) => {
                    self.skip();
                    body.push(Stmt::Data(text));
                }
                Token::VariableBegin => {
                    self.skip();
                    let value = self.tuple(true, false)?;
                    if *self.current() != Token::VariableEnd {
                        return self.unexpected("end of print statement");
                    }
                    self.skip();
                    // Jinja2 writes constants as they are where it learns only later whether to escape.
                    let constant = matches!(value.node, Node::Str(_)) && self.escaping == Escaping::Current;
                    let escaping = if constant { Escaping::Off } else { self.escaping };
                    body.push(Stmt::Print(vec![value], escaping));
                }
                Token::BlockBegin => {
                    self.skip();
                    if ends.iter().any(|end| self.is_name(end)) {
                        self.statements -= 1;
                        return Ok(body);
                    }
                    body.push(self.statement()?);
                    self.block_end()?;
                }
                Token::End if ends.is_empty() => {
                    self.statements -= 1;
                    return Ok(body);
                }
                Token::End => {
                    let ends = ends.join("' or '");
                    return self.error(format!("Unexpected end of template. Jinja was looking for '{ends}'"));
                }
                _ => return self.unexpected("template data"),
            }
        }
    }

    fn block_end(&mut self) -> Parsed<()> {
        if *self.current() != Token::BlockEnd {
            return self.unexpected("end of statement block");
        }
        self.skip();
        Ok(())
    }

    /// The rest of a tag, and the statements up to one of `ends`.
    fn statements(&mut self, ends: &[&str]) -> Parsed<Vec<Stmt>> {
        self.accept_op(":");
        self.block_end()?;
        self.body(ends)
    }

    /// Statements that have variables of their own, up to the tag `end`, which is passed.
    fn inner(&mut self, end: &str) -> Parsed<Vec<Stmt>> {
        self.inner_until(&[end]).map(|(body, _)| body)
    }

    fn inner_until(&mut self, ends: &[&str]) -> Parsed<(Vec<Stmt>, String)> {
        let (toplevel, mark) = (self.toplevel, self.unknown.len());
        self.toplevel = false;
        let body = self.statements(ends)?;
        self.known_since(mark)?;
        self.toplevel = toplevel;
        Ok((body, self.name()?))
    }

    /// The body of something that becomes a function: no loop around it can be ended from inside.
    fn function(&mut self, end: &str) -> Parsed<Vec<Stmt>> {
        let breakable = std::mem::take(&mut self.breakable);
        let body = self.inner(end)?;
        self.breakable = breakable;
        Ok(body)
    }

    fn statement(&mut self) -> Parsed<Stmt> {
        let line = self.line();
        let Token::Name(tag) = self.current() else { return self.error("tag name expected") };
        let tag = tag.clone();
        self.skip();
        match tag.as_str() {
            "for" => self.parse_for(),
            "if" => self.parse_if(),
            "set" => self.parse_set(line),
            "print" => {
                let mut values = Vec::new();
                while *self.current() != Token::BlockEnd {
                    if !values.is_empty() {
                        self.expect_op(",")?;
                    }
                    values.push(self.expression(true)?);
                }
                Ok(Stmt::Print(values, self.escaping))
            }
            "with" => self.parse_with(),
            "macro" => {
                let name = self.target_name()?;
                let name = self.symbol(name);
                let parameters = self.signature()?;
                Ok(Stmt::Macro(self.macro_body(Some(name), parameters, "endmacro")?))
            }
            "call" => {
                let parameters = if self.is_op("(") { self.signature()? } else { Vec::new() };
                let call = self.expression(true)?;
                if !matches!(call.node, Node::Call(..)) {
                    return self.error("expected call");
                }
                let body = self.macro_body(None, parameters, "endcall")?;
                Ok(Stmt::CallBlock(body, Some(call)))
            }
            "generation" => {
                let body = self.macro_body(None, Vec::new(), "endgeneration")?;
                Ok(Stmt::CallBlock(body, None))
            }
            "filter" => {
                let mark = self.unknown.len();
                let filter = self.filter_chain(None, true)?;
                self.known_since(mark)?;
                let Some(filter) = filter else { return self.unexpected("name") };
                Ok(Stmt::FilterBlock(filter, self.inner("endfilter")?, self.escaping))
            }
            "autoescape" => {
                let mark = self.unknown.len();
                let value = self.expression(true)?;
                self.known_since(mark)?;
                let mode = match value.node {
                    Node::Bool(true) => Escaping::On,
                    Node::Bool(false) | Node::None => Escaping::Off,
                    _ => Escaping::Current,
                };
                let outer = std::mem::replace(&mut self.escaping, mode);
                let body = self.inner("endautoescape")?;
                self.escaping = outer;
                Ok(Stmt::Autoescape(value, body))
            }
            "block" => self.parse_block(),
            "break" | "continue" if self.breakable == 0 => self.error(format!("'{tag}' outside loop")),
            "break" => Ok(Stmt::Break),
            "continue" => Ok(Stmt::Continue),
            "extends" if !self.toplevel => self.error("cannot use extend from a non top-level scope"),
            "extends" => Ok(Stmt::Load { template: self.expression(true)?, ignore_missing: false }),
            "include" => {
                let template = self.expression(true)?;
                let ignore_missing = self.is_name("ignore") && *self.ahead() == Token::Name("missing".to_owned());
                self.at += 2 * usize::from(ignore_missing);
                self.import_context();
                Ok(Stmt::Load { template, ignore_missing })
            }
            "import" => {
                let template = self.expression(true)?;
                self.expect_name("as")?;
                self.target_name()?;
                self.import_context();
                Ok(Stmt::Load { template, ignore_missing: false })
            }
            "from" => self.parse_from(),
            _ => {
                self.at -= 1;
                self.error(format!("Encountered unknown tag '{}'.", Token::Name(tag).describe()))
            }
        }
    }

    fn import_context(&mut self) -> bool {
        let context = *self.ahead() == Token::Name("context".to_owned());
        let found = context && (self.is_name("with") || self.is_name("without"));
        self.at += 2 * usize::from(found);
        found
    }

    fn parse_from(&mut self) -> Parsed<Stmt> {
        let template = self.expression(true)?;
        self.expect_name("import")?;
        let mut names = 0;
        loop {
            if names > 0 {
                self.expect_op(",")?;
            }
            if self.import_context() {
                break;
            }
            let name = self.target_name()?;
            if name.starts_with('_') {
                return self.error("names starting with an underline can not be imported");
            }
            if self.accept_name("as") {
                self.target_name()?;
            }
            names += 1;
            if self.import_context() || !self.is_op(",") {
                break;
            }
        }
        Ok(Stmt::Load { template, ignore_missing: false })
    }

    fn parse_block(&mut self) -> Parsed<Stmt> {
        let name = self.name()?;
        let symbol = self.symbol(name.clone());
        let scoped = self.accept_name("scoped");
        let required = self.accept_name("required");
        if self.is_op("-") {
            return self.error("Block names in Jinja may not contain hyphens, use an underscore instead.");
        }
        if self.tables.blocks.iter().any(|block| block.name == symbol) {
            return self.error(format!("block '{name}' defined twice"));
        }
        let index = self.tables.blocks.len();
        self.tables.blocks.push(Block { name: symbol, scoped, required, body: Vec::new() });
        // The names that a block reads do not count as read by the macro around it.
        let special = std::mem::take(&mut self.special);
        let body = self.function("endblock")?;
        self.special = special;
        let blank = |stmt: &Stmt| matches!(stmt, Stmt::Data(text) if text.chars().all(crate::chars::is_space));
        if required && !body.iter().all(blank) {
            return self.error("Required blocks can only contain comments or whitespace");
        }
        self.accept_name(&name);
        if let Some(block) = self.tables.blocks.get_mut(index) {
            block.body = body;
        }
        Ok(Stmt::Block(index))
    }

    fn parse_for(&mut self) -> Parsed<Stmt> {
        self.loops += 1;
        let target = self.target_tuple(false)?;
        self.expect_name("in")?;
        let iterable = self.tuple(false, false)?;
        let mark = self.unknown.len();
        let test = if self.accept_name("if") { Some(self.expression(true)?) } else { None };
        self.known_since(mark)?;
        let recursive = self.accept_name("recursive");
        let outer = self.breakable;
        self.breakable = if recursive { 1 } else { outer + 1 };
        let (body, end) = self.inner_until(&["endfor", "else"])?;
        self.breakable = if recursive { 0 } else { outer };
        let otherwise = if end == "else" { self.inner("endfor")? } else { Vec::new() };
        self.breakable = outer;
        self.loops -= 1;
        let escaping = self.escaping;
        self.tables.loops.push(For { target, iterable, test, recursive, body, otherwise, escaping });
        Ok(Stmt::For(self.tables.loops.len() - 1))
    }

    fn parse_if(&mut self) -> Parsed<Stmt> {
        let mark = self.unknown.len();
        let mut branches = Vec::new();
        let mut otherwise = Vec::new();
        loop {
            let test = self.tuple(false, false)?;
            let body = self.statements(&["elif", "else", "endif"])?;
            branches.push((test, body));
            match self.name()?.as_str() {
                "elif" => {}
                "else" => {
                    otherwise = self.statements(&["endif"])?;
                    self.skip();
                    break;
                }
                _ => break,
            }
        }
        // What is unknown here is an error only where it runs.
        self.unknown.truncate(mark);
        Ok(Stmt::If { branches, otherwise })
    }

    fn parse_set(&mut self, line: u32) -> Parsed<Stmt> {
        let target = self.target_tuple(true)?;
        if self.accept_op("=") {
            return Ok(Stmt::Set(target, self.tuple(true, false)?));
        }
        let mark = self.unknown.len();
        let filter = self.filter_chain(None, false)?;
        self.known_since(mark)?;
        Ok(Stmt::SetBlock { target, filter, body: self.inner("endset")?, line })
    }

    fn parse_with(&mut self) -> Parsed<Stmt> {
        let mut variables = Vec::new();
        while *self.current() != Token::BlockEnd {
            if !variables.is_empty() {
                self.expect_op(",")?;
            }
            let target = self.target_tuple(false)?;
            self.expect_op("=")?;
            variables.push((target, self.expression(true)?));
        }
        Ok(Stmt::With(variables, self.inner("endwith")?))
    }

    fn macro_body(
        &mut self,
        name: Option<Symbol>,
        parameters: Vec<(Symbol, Option<Expr>)>,
        end: &str,
    ) -> Parsed<usize> {
        self.special.push(Special::default());
        let body = self.function(end)?;
        let read = self.special.pop().unwrap_or_default().read;
        let parameter = |special: &str| {
            parameters.iter().find(|(symbol, _)| self.tables.texts.get(symbol.0 as usize).is_some_and(|t| t == special))
        };
        if read[0] && parameter("caller").is_some_and(|(_, default)| default.is_none()) {
            return self.error("the special \"caller\" argument must be omitted or be given a default");
        }
        let wanted: Vec<bool> =
            SPECIAL.iter().zip(read).map(|(special, read)| read && parameter(special).is_none()).collect();
        let (caller, kwargs, varargs) = (wanted[0], wanted[1], wanted[2]);
        self.tables.macros.push(Macro { name, parameters, body, caller, kwargs, varargs });
        Ok(self.tables.macros.len() - 1)
    }

    pub(crate) fn no_args() -> Box<Args> {
        Box::default()
    }
}
